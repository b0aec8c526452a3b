"""One row of every public data set that a recipe names, in the columns of its card, made up here.

Keys are (data set, mapper). Cards: huggingface.co/datasets/NAME. BytedTsinghua-SIA/DAPO-Math-17k is the original of
open-r1/DAPO-Math-17k-Processed. The card of yentinglin/aime_2025 could not be read: its row is what recipes/eval
expects.
"""

from typing import Any

_DAPO_PROMPT = [
    {
        "role": "user",
        "content": "Solve the problem. The last line should be of the form Answer: $Answer.\n\nWhat is 6 times 7?",
    }
]
_THOUGHT = "<think>\nSix sevens.\n</think>\n\nSo it is $\\boxed{42}$."
_PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAIAAAD9b0jDAAAAGUlEQVR4nO3BMQEAAADC"
    "oPVPbQdvoAAAeA0JTAAB9ZfCmAAAAABJRU5ErkJggg=="
)

ROWS: dict[tuple[str, str | None], dict[str, Any]] = {
    ("openai/gsm8k:main", "rewards.math_answer:gsm8k_row"): {
        "question": "Ann has 2 pens and buys 3. How many has she?",
        "answer": "Ann has 2+3=<<2+3=5>>5 pens.\n#### 5",
    },
    ("openai/gsm8k:main", "rewards.math_readers:gsm8k_solution_row"): {
        "question": "Ann has 2 pens and buys 3. How many has she?",
        "answer": "Ann has 2+3=<<2+3=5>>5 pens.\n#### 5",
    },
    ("DigitalLearningGmbH/MATH-lighteval", "rewards.math_readers:math_row"): {
        "problem": "What is $6 \\cdot 7$?",
        "level": "Level 1",
        "type": "Prealgebra",
        "solution": "Six sevens are $\\boxed{42}$.",
    },
    ("HuggingFaceH4/MATH-500", None): {
        "problem": "What is $6 \\cdot 7$?",
        "solution": "Six sevens are $\\boxed{42}$.",
        "answer": "42",
        "subject": "Prealgebra",
        "level": 1,
        "unique_id": "test/prealgebra/1.json",
    },
    ("HuggingFaceH4/aime_2024", None): {
        "id": 60,
        "problem": "Find $6 \\cdot 7$.",
        "solution": "It is $\\boxed{042}$.",
        "answer": "042",
        "url": "https://example.org",
        "year": "2024",
    },
    ("open-r1/DAPO-Math-17k-Processed:en", None): {
        "prompt": "What is 6 times 7?",
        "solution": "42",
        "data_source": "math_dapo",
        "source_prompt": _DAPO_PROMPT,
        "ability": "MATH",
        "reward_model": {"ground_truth": "42", "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": "9a9b6eb4"},
    },
    ("open-r1/DAPO-Math-17k-Processed:all", None): {
        "prompt": "What is 6 times 7?",
        "solution": "42",
        "data_source": "math_dapo",
        "source_prompt": _DAPO_PROMPT,
        "ability": "MATH",
        "reward_model": {"ground_truth": "42", "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": "9a9b6eb4"},
    },
    ("BytedTsinghua-SIA/DAPO-Math-17k", None): {
        "data_source": "math_dapo",
        "prompt": _DAPO_PROMPT,
        "ability": "MATH",
        "reward_model": {"ground_truth": "42", "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": "9a9b6eb4"},
    },
    ("open-r1/OpenR1-Math-220k", "rewards.math_readers:openr1_row"): {
        "problem": "What is $6 \\cdot 7$?",
        "solution": "Six sevens are $\\boxed{42}$.",
        "answer": "42",
        "problem_type": "Algebra",
        "question_type": "math-word-problem",
        "source": "olympiads",
        "uuid": "8fd2d1",
        "is_reasoning_complete": [True, True, False],
        "generations": [_THOUGHT + " Indeed.", _THOUGHT, "<think>\nSix"],
        "correctness_math_verify": [True, True, False],
        "correctness_llama": None,
        "finish_reasons": ["stop", "stop", "length"],
        "correctness_count": 2,
        "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": _THOUGHT}],
    },
    ("open-thoughts/OpenThoughts-114k:metadata", "rewards.math_readers:openthoughts_row"): {
        "problem": "What is 6 times 7?",
        "deepseek_reasoning": "Six sevens.",
        "deepseek_solution": "So it is $\\boxed{42}$.",
        "ground_truth_solution": "42",
        "domain": "math",
        "source": "numina_math",
        "test_cases": None,
        "starter_code": None,
    },
    ("HuggingFaceH4/ultrafeedback_binarized", "rewards.preference_readers:ultrafeedback_row"): {
        "prompt": "Name a colour.",
        "prompt_id": "af1c",
        "chosen": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}],
        "rejected": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "No."}],
        "messages": [
            {"role": "user", "content": "Name a colour."},
            {"role": "assistant", "content": "Blue."},
        ],
        "score_chosen": 8.5,
        "score_rejected": 3.0,
    },
    ("hiyouga/geometry3k", None): {
        "images": [_PICTURE],
        "problem": "<image>Find x.",
        "answer": "2 \\sqrt { 221 }",
        "id": 2948,
        "choices": ["2 \\sqrt { 221 }", "30", "35", "39"],
        "ground_truth": "A",
    },
    ("HuggingFaceH4/rlaif-v_formatted", None): {
        "images": [_PICTURE],
        "prompt": [
            {
                "role": "user",
                "content": [{"type": "image", "text": None}, {"type": "text", "text": "What colour is it?"}],
            }
        ],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "It is black."}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "It is a cat."}]}],
    },
    ("HuggingFaceH4/ultrachat_200k", None): {
        "prompt": "Name a colour.",
        "prompt_id": "f0e3",
        "messages": [
            {"role": "user", "content": "Name a colour."},
            {"role": "assistant", "content": "Blue."},
        ],
    },
    ("allenai/RLVR-IFeval", "rewards.instruction_checks:rlvr_ifeval_row"): {
        "messages": [{"role": "user", "content": "Write a line. Use no commas."}],
        "ground_truth": '{"func_name": "validate_no_commas"}',
        "dataset": "ifeval",
        "constraint_type": "No commas",
        "constraint": "Use no commas.",
    },
    ("google/IFEval", None): {
        "key": 1000,
        "prompt": "Write a line. Use no commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{"num_words": None, "relation": None}],
    },
    ("likaixin/TACO-verified", "rewards.code_readers:apps_row"): {
        "id": 7,
        "question": "Read a number and print its double.",
        "solutions": ["print(2 * int(input()))"],
        "starter_code": "",
        "input_output": '{"inputs": ["3\\n"], "outputs": ["6\\n"]}',
        "difficulty": "EASY",
        "raw_tags": "[]",
        "name": None,
        "source": "codeforces",
        "tags": "[]",
        "skill_types": "[]",
        "url": "https://example.org",
        "Expected Auxiliary Space": None,
        "time_limit": None,
        "date": None,
        "picture_num": None,
        "memory_limit": None,
        "Expected Time Complexity": None,
    },
    ("openai/openai_humaneval", "rewards.code_readers:humaneval_row"): {
        "task_id": "HumanEval/900",
        "prompt": 'def double(x: int) -> int:\n    """Twice x."""\n',
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(3) == 6\n",
        "entry_point": "double",
    },
    ("google-research-datasets/mbpp:full", "rewards.code_readers:mbpp_row"): {
        "task_id": 900,
        "text": "Write a function that doubles a number.",
        "code": "def double(x):\n  return 2 * x",
        "test_list": ["assert double(3) == 6"],
        "test_setup_code": "",
        "challenge_test_list": [],
    },
    ("yentinglin/aime_2025", None): {
        "id": 1,
        "problem": "Find $6 \\cdot 7$.",
        "answer": "42",
        "solution": "It is $\\boxed{42}$.",
        "url": "https://example.org",
        "year": 2025,
    },
}
