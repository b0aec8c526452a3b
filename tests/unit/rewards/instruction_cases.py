"""For every instruction: arguments, responses that keep it, that break it, and that only seem to keep it."""
# ruff: noqa: RUF001 (other alphabets)

from dataclasses import dataclass, field
from typing import Any

POEM = "The cat sat on the mat. It saw a dog. The dog ran home!"
LONG = "We went to the old market by the river and bought some bread, cheese and a few ripe plums for lunch."


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One instruction and responses to it. `tricks` are what a policy would find."""

    id: str
    kept: tuple[str, ...]
    broken: tuple[str, ...]
    tricks: tuple[str, ...]
    arguments: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case(
        id="keywords:existence",
        arguments={"keywords": ["market", "ripe plums"]},
        kept=(LONG, "MARKET stalls sold RIPE\nplums."),
        broken=(POEM, "At the market we bought ripe pears."),
        tricks=("The supermarkets sold overripe plums.", "We saw market-ripe fruit, plums."),
    ),
    Case(
        id="keywords:frequency",
        arguments={"keyword": "dog", "frequency": 2, "relation": "at least"},
        kept=(POEM, "Dog! A dog, a hot dog."),
        broken=("One dog only.", LONG),
        tricks=("Dogmatic dogs dogged the hotdog stand.", "d o g, d o g and again d o g"),
    ),
    Case(
        id="keywords:frequency",
        arguments={"keyword": "dog", "frequency": 2, "relation": "less than"},
        kept=("One dog only.", LONG),
        broken=(POEM, "A dog and a dog."),
        tricks=("DOG and Dog.",),
    ),
    Case(
        id="keywords:forbidden_words",
        arguments={"forbidden_words": ["dog", "hot tea"]},
        kept=(LONG, "Dogma is not a word of theirs; the tea was hot."),
        broken=(POEM, "I like hot  tea."),
        tricks=("A Dog.", "dog-friendly", "My 'dog'"),
    ),
    Case(
        id="keywords:letter_frequency",
        arguments={"letter": "Q", "let_frequency": 2, "let_relation": "at least"},
        kept=("Quite a quiz.", "The queen asks a question."),
        broken=("A quiz.", POEM),
        tricks=("The queen: \N{CYRILLIC SMALL LETTER QA}",),
    ),
    Case(
        id="language:response_language",
        arguments={"language": "de"},
        kept=(
            "Das ist nicht so, wie wir es uns gedacht haben.",
            "Es war einmal ein König, der hatte eine Tochter.",
        ),
        broken=(LONG, "C'est la vie, et il ne faut pas s'en plaindre avec les autres."),
        tricks=("Ja! " + LONG, "Das ist es. " + LONG),
    ),
    Case(
        id="length_constraints:number_sentences",
        arguments={"num_sentences": 3, "relation": "at least"},
        kept=(POEM, "One thing. Another thing. Then a third."),
        broken=(LONG, "One. Two."),
        tricks=("Yes. Yes. Yes. Yes.", "... ! ? . . .", "A. B. C. D. E.", "1.5 of 2.5 and 3.5 of 4.5"),
    ),
    Case(
        id="length_constraints:number_sentences",
        arguments={"num_sentences": 3, "relation": "less than"},
        kept=(LONG, "Dr. No paid 3.50 for it. He left."),
        broken=(POEM, "One! Two! Three!"),
        tricks=("One.\n\nTwo.\n\nThree", "你好。我好。他好。"),
    ),
    Case(
        id="length_constraints:number_paragraphs",
        arguments={"num_paragraphs": 2},
        kept=("First part.\n***\nSecond part.", "First part.\n\n* * *\n\nSecond part."),
        broken=("First part.\n\nSecond part.", "a\n***\nb\n***\nc"),
        tricks=(
            "Only one.\n***\n",
            "***\nOnly one.",
            "Same.\n***\nSame.",
            "Text ***bold*** text.",
            "a\n***\n...\n",
        ),
    ),
    Case(
        id="length_constraints:number_words",
        arguments={"num_words": 15, "relation": "at least"},
        kept=(LONG, "我们去了河边的老市场买了一些面包和奶酪"),
        broken=(POEM[:30], "Three words only"),
        tricks=("- - - - - - - - - - - - - - - - -", ". , . , . , . , . , . , . , ."),
    ),
    Case(
        id="length_constraints:number_words",
        arguments={"num_words": 5, "relation": "at most"},
        kept=("Three words only", "It is five words long"),
        broken=(LONG, POEM),
        tricks=("six/words/joined/by/slashes/here", "six_words_joined_by_lines_here", "我们去了河边的市场"),
    ),
    Case(
        id="length_constraints:number_words",
        arguments={"num_words": 10, "relation": "around"},
        kept=(
            "One two three four five six seven eight nine",
            "One two three four five six seven eight nine ten eleven",
        ),
        broken=("One two three four five six seven eight", LONG),
        tricks=("1 - 2 - 3 - 4 - 5",),
    ),
    Case(
        id="length_constraints:nth_paragraph_first_word",
        arguments={"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weather"},
        kept=("First, some words.\n\nWeather is next.", "A.\n\n\n**Weather**: rain."),
        broken=("Weather first.\n\nThen the rest.", "A.\n\nWeather.\n\nC."),
        tricks=("Same.\n\nweathered wood", "The only one.\n\n", "Weather.\n\nWeather.", "A.\nWeather."),
    ),
    Case(
        id="detectable_content:number_placeholders",
        arguments={"num_placeholders": 2},
        kept=("Dear [name], come to [address].", "[a][b] and so on"),
        broken=("Dear [name].", POEM),
        tricks=("[] []", "[ ] [...]", "[name] [name] [Name]", "[a\nb] [c"),
    ),
    Case(
        id="detectable_content:postscript",
        arguments={"postscript_marker": "P.S."},
        kept=("A letter.\n\nP.S. I forgot one thing.", "A letter.\n**p. s.** one more."),
        broken=("A letter.", "A letter that names P.S. in its middle."),
        tricks=(
            "A letter.\nP.S.",
            "P.S. All of it is one.",
            "A letter.\nP.S. ...",
            "A letter.\nPsst, listen.",
        ),
    ),
    Case(
        id="detectable_content:postscript",
        arguments={"postscript_marker": "P.P.S"},
        kept=("A letter.\nP.P.S. And this.", "A letter.\nP.P.S And this."),
        broken=("A letter.\nP.S. And this.", "P.P.S"),
        tricks=("A letter.\nP.P.Sun is out.",),
    ),
    Case(
        id="detectable_format:number_bullet_lists",
        arguments={"num_bullets": 2},
        kept=("* one\n* two", "Items:\n- one\n  - two"),
        broken=("* one\n* two\n* three", "one, two"),
        tricks=("* one\n* one", "-\n-\n", "*bold* word\n*bold* again", "---\n---", "* one\n* ..."),
    ),
    Case(
        id="detectable_format:constrained_response",
        kept=("My answer is yes.", "I thought about it. My answer is maybe."),
        broken=("Yes.", POEM),
        tricks=("My answer is yes. My answer is no.", "my answer is: yes.", "My answer is yes, no or maybe."),
    ),
    Case(
        id="detectable_format:constrained_response",
        arguments={"options": ["A", "A and B", "B"]},
        kept=("A and B", "It is B."),
        broken=("C", "neither"),
        tricks=("A or B", "Apple", "a", "A and B, or B"),
    ),
    Case(
        id="detectable_format:number_highlighted_sections",
        arguments={"num_highlights": 2},
        kept=("*one* and *two*", "**one** and *two things*"),
        broken=("*one* only", POEM),
        tricks=(
            "****",
            "** ** * *",
            "*same* *same*",
            "* item\n* item",
            "*one two",
            "*...* *!!!*",
            "***one***",
        ),
    ),
    Case(
        id="detectable_format:multiple_sections",
        arguments={"section_spliter": "Section", "num_sections": 2},
        kept=("Section 1\nSome text.\nSection 2\nMore text.", "## Section 1: a\nb\n## Section 2: c\nd"),
        broken=("Section 1\nSome text.", POEM),
        tricks=(
            "Section 1\nSection 2\n",
            "Section 1 a\nSection 1 b",
            "As Section 1 and Section 2 say",
            "Section A\nx\nSection B\ny",
        ),
    ),
    Case(
        id="detectable_format:json_format",
        kept=('{"a": [1, 2]}', '```json\n{"a": 1}\n```', '["a"]'),
        broken=("a: 1", '{"a": 1,}'),
        tricks=(
            "{}",
            "[]",
            '"text"',
            "7",
            "null",
            '{"a": NaN}',
            'Here: {"a": 1}',
            '{"a": 1} {"b": 2}',
            "[" * 5000 + "]" * 5000,
        ),
    ),
    Case(
        id="detectable_format:title",
        kept=("<<poem of joy>>\nRoses are red.", "Roses are red, says <<poem of joy>>."),
        broken=("<poem of joy>\nRoses are red.", POEM),
        tricks=("<<>>\nRoses", "<< >>\nRoses", "<<...>> Roses", "<<poem of joy>>", "<<poem\nof joy>> Roses"),
    ),
    Case(
        id="combination:two_responses",
        kept=("One way.\n******\nAnother way.", "One way. ****** Another."),
        broken=("One way.\n***\nAnother way.", "a ****** b ****** c"),
        tricks=(
            "Same.\n******\nSame.",
            "Same.\n******\nsame!",
            "One.\n******\n",
            "******",
            "One.\n*******\nTwo.",
        ),
    ),
    Case(
        id="combination:repeat_prompt",
        arguments={"prompt_to_repeat": "Write a poem."},
        kept=("Write a poem.\nRoses are red.", "write a poem. Roses are red."),
        broken=("Roses are red.", "Sure! Write a poem. Roses are red."),
        tricks=("Write a poem.", "Write a poem. ...", "Write a  poem", "Write a poem\nRoses are red."),
    ),
    Case(
        id="multi-turn:constrained_start",
        arguments={"starter": "I reckon"},
        kept=("I reckon so.", "\nI reckon it is 5."),
        broken=("So I reckon.", "i reckon so."),
        tricks=("I reckon", "I reckon...", "No.\nI reckon so."),
    ),
    Case(
        id="startend:end_checker",
        arguments={"end_phrase": "Any other questions?"},
        kept=("It is 5. Any other questions?", '"It is 5. any other questions?"\n'),
        broken=("Any other questions? It is 5.", POEM),
        tricks=("Any other questions?", "... Any other questions?", "It is 5. Any other questions? No."),
    ),
    Case(
        id="startend:quotation",
        kept=('"All of it."', ' "It is 5."\n'),
        broken=("All of it.", '"All" of it.'),
        tricks=('"', '""', '"..."', "'All of it.'", "“All of it.”"),
    ),
    Case(
        id="change_case:capital_word_frequency",
        arguments={"capital_frequency": 2, "capital_relation": "at least"},
        kept=("NASA and ESA agree.", "I say YES."),
        broken=("NASA agrees.", POEM),
        tricks=("Nasa And Esa", "1234 5678", "NaSA ESa"),
    ),
    Case(
        id="change_case:english_capital",
        kept=("THE ANSWER IS THAT WE NEED 5 OF THESE.", "YES."),
        broken=(POEM, "THE ANSWER IS five."),
        tricks=("12345", "DAS IST NICHT DAS, WAS WIR UNS GEDACHT HABEN.", "你好"),
    ),
    Case(
        id="change_case:english_lowercase",
        kept=("the answer is that we need 5 of these.", "yes."),
        broken=(POEM, "the answer is Five."),
        tricks=("12345", "das ist nicht das, was wir uns gedacht haben.", "你好"),
    ),
    Case(
        id="punctuation:no_comma",
        kept=(POEM, "One; two; three."),
        broken=(LONG, "One, two."),
        tricks=("One，two.", "一、二", "واحد، اثنان"),
    ),
)
