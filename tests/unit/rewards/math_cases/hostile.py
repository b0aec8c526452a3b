"""What is meant to hang, to crash, to be run, or to be paid for nothing (policy lines 8 and 9)."""

from tests.unit.rewards.math_cases.case import Case, Verdict, pairs

LARGE: list[tuple[str, str]] = [
    ("9^9^9^9^9^9", "a tower of powers"),
    ("9^{9^{9^{9^{9^{9}}}}}", "a tower of powers in braces"),
    ("{{{{9^9}^9}^9}^9}^9", "a tower from below"),
    ("2^{99999999}", "a large power"),
    ("99999999!", "a large factorial"),
    ("10!!!", "factorials of factorials"),
    ("9" * 5000, "5,000 digits"),
    ("9" * 290 + "+x", "290 digits in an expression"),
    ("(" * 200 + "1" + ")" * 200, "deep brackets"),
    ("{" * 100 + "x" + "}" * 100 + "+1", "deep braces"),
    (r"\sqrt{" * 50 + "2" + "}" * 50, "deep roots"),
    (r"\frac{1}{" * 40 + "2" + "}" * 40, "a deep continued fraction"),
    ("x+" * 3000 + "1", "3,000 terms"),
    ("(x+1)^{9999}", "a power to expand"),
    ("(x+y+z+a+b+c)^{200}", "a multinomial to expand"),
    (
        "(x+y+z+a+b+c)^{59}(c+b+a)+(x+y+z+a+b+c)^{59}(x+y+z)-(a+b+c+x+y+z)^{60}+x",
        "what vanishes, if expanded",
    ),
    (
        "(" + "+".join(rf"\sqrt{{{n}}}" for n in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)) + ")^{40}",
        "a surd to expand",
    ),
    (r"\operatorname{ones}(99999,99999)", "ten billion ones"),
    (r"\operatorname{eye}(99999)", "a huge unit matrix"),
    (r"\binom{10000}{5000}^{10000}", "a huge binomial's power"),
    (r"\binom{99999999}{49999999}", "a huge binomial"),
    ("(10^{9999})^{9999}+x", "a huge power in brackets"),
    ("(" * 10 + "x^{99}+1" + ")^{99}" * 10, "a tower of brackets"),
    (r"\sin^{999}x\cos^{999}y\tan^{999}z", "trigonometric powers"),
    (r"\cos(\cos(\cos(\cos(\cos(\cos(\cos(\cos(x))))))))^{\cos(x)^{\sin(x)}}", "nested functions"),
    (r"\sqrt[7]{x^9+\sqrt[5]{x^8+\sqrt[3]{x^7+\sqrt{x^5+\pi}}}}-x^{\pi}", "mixed radicals"),
    ("x^{x^{x^{x^{x}}}}", "a tower of symbols"),
]
RUN: list[tuple[str, str]] = [
    ("__import__('os').system('touch {marker}')", "Python's import"),
    ("__import__('os').getpid()", "Python's import"),
    ("(lambda: open('{marker}', 'w'))()", "a lambda that writes"),
    ("open('{marker}','w').write('x')", "a write"),
    ("exec(\"open('{marker}','w')\")", "exec"),
    ("eval('17*23')", "eval of the right product"),
    ("[x for x in ().__class__.__bases__[0].__subclasses__()]", "the class walk"),
    ("sympify('391')", "sympy's string parser"),
    ("parse_expr('391')", "sympy's string parser"),
    ("S('391')", "sympy's string parser"),
    ("Symbol('x').__class__", "an attribute of a sympy object"),
    ("Integer(391)", "a constructor"),
    (r"\operatorname{exec}(1)", "a function called exec"),
    (r"\operatorname{__import__}(os)", "a function called __import__"),
    (r"x_{__import__('os').system('touch {marker}')}", "code as a subscript"),
    (r"\mathrm{lambda}: 391", "a keyword in a font"),
    ("`touch {marker}`", "a shell's backquotes"),
    ("$(touch {marker})", "a shell's substitution"),
    ("391; import os; os.system('touch {marker}')", "a statement behind the number"),
    ("<script>391</script>", "a script tag"),
    ("' OR '1'='1", "an SQL injection"),
    ("%(reference)s", "a format's placeholder"),
    ("391\x00", "a null byte"),
    ("\\input{/etc/passwd}", "LaTeX reads a file"),
    ("\\immediate\\write18{touch {marker}}", "LaTeX runs a program"),
    ("\\def\\x{\\x\\x}\\x", "a LaTeX macro that grows"),
]
NOTHING: list[tuple[str, str]] = [
    ("", "nothing"),
    (".", "a point"),
    ("-", "a sign"),
    ("+", "a sign"),
    ("=", "a sign"),
    (",", "a comma"),
    ("$", "a dollar"),
    ("{", "a brace"),
    ("\\", "a backslash"),
    ("%", "a percent sign"),
    ("()", "empty brackets"),
    ("\\text{}", "empty text"),
    ("\\frac", "a command without arguments"),
    ("\\frac{391}", "half a fraction"),
    ("\\sqrt", "a command without an argument"),
    ("?", "a question mark"),
    ("...", "dots"),
    ("x", "a symbol"),
    ("same as above", "a reference"),
    ("see the solution", "a reference"),
    ("[insert answer]", "a placeholder"),
    ("391 is wrong", "a denial"),
    ("anything", "a wild card"),
    (".*", "a pattern"),
    ("\\d+", "a pattern"),
    ("391" * 90, "repetition"),
]
_REPEATED = [
    "<",
    "\\boxed{",
    "{",
    "(",
    "\\frac",
    "1,",
    "answer is",
    "^",
    "-",
    "$ ",
    "$",
    "1 ",
    "a ",
    "a/",
    "\\\\",
    "####",
]
_REPEATED += [
    "answer is\n",
    " or ",
    "\\(",
    "<answer>",
    "</think>",
    "x=",
    "1:",
    "\\pm ",
    "\\cup ",
    "0.",
    "\\text{",
    "¹",
    "[",
    "|",
]


def limits(verdict: Verdict, rows: list[tuple[str, str]], gold: str) -> list[Case]:
    return [
        Case(line=8, completion=f"<answer>{answer}</answer>", gold=gold, verdict=verdict, reason=reason)
        for answer, reason in rows
    ]


REPETITION = [
    Case(line=8, completion=text, gold="x+1", verdict="wrong", reason=f"{unit!r} for 64 kB and more")
    for unit in _REPEATED
    for text in (
        unit * (80_000 // len(unit)),
        f"<answer>{unit * (80_000 // len(unit))}</answer>",
        unit + " " * 70_000,
    )
]
OWN_GOLD = pairs(
    9,
    "right",
    [
        ("So we get 4+4.\n#### 8", "8", "the gold is a whole solution with a marker"),
        (r"Hence $x=\boxed{\frac{1}{2}}$.", "0.5", "the gold is a whole solution with a box"),
        (" 8 ", "8", "spaces around the gold"),
        ("8.", "8", "a point behind the gold"),
        (r"x^{2}+\frac{1", r"x^{2}+\frac{1", "a gold that is no LaTeX is text"),
    ],
)

CASES: list[Case] = [
    *limits("wrong", RUN, "391"),
    *limits("wrong", LARGE, "x+1"),
    *limits("wrong", NOTHING, "391"),
    *REPETITION,
    *OWN_GOLD,
]
