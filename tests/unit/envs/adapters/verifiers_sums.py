"""An environment of verifiers 0.1, as its users write them: sums, with a tool or without. Run by its interpreter."""

from typing import Any


def load_environment(*, with_tool: bool = True, fails: bool = False) -> Any:
    import verifiers as vf
    from datasets import Dataset

    def add(a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: One number.
            b: The other.
        """
        return a + b

    def is_right(completion: Any, answer: str) -> float:
        if fails:
            raise RuntimeError("the rubric is broken")
        return float(answer in str(completion[-1].content))

    tasks = [{"question": f"What is {a} + 2?", "answer": str(a + 2)} for a in range(40, 50)]
    rubric = vf.Rubric(funcs=[is_right])
    if fails:
        # As quiet programs do: what the rubric raises is told nowhere.
        vf.setup_logging("CRITICAL")
    shared = {"dataset": Dataset.from_list(tasks), "rubric": rubric, "system_prompt": "Add."}
    return vf.ToolEnv(tools=[add], max_turns=4, **shared) if with_tool else vf.SingleTurnEnv(**shared)
