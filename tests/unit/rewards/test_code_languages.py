import shutil

import pytest

from rewards.code_languages import LANGUAGES, require
from rewards.code_tests import CodeTests
from rlhf.errors import DataError, LoadError
from tests.unit.rewards.code_cases import RIGHT, STDIO, fenced, grade, prompt, sandbox

__all__ = ["sandbox"]
PROGRAMS = {
    "c": "#include <stdio.h>\n"
    'int main(void) { long a, b; while (scanf("%ld %ld", &a, &b) == 2) printf("%ld\\n", a + b); }',
    "cpp": "#include <bits/stdc++.h>\n"
    "int main() { long a, b; while (std::cin >> a >> b) std::cout << a + b << '\\n'; }",
    "javascript": "for (const line of require('fs').readFileSync(0, 'utf8').trim().split('\\n')) {\n"
    "  const [a, b] = line.split(' ').map(Number);\n  console.log(a + b);\n}",
}


def needs(language, sandbox):
    if sandbox.tier == "read-only":
        pytest.skip("read-only: a compiler cannot write")
    if not any(shutil.which(tool) for tool in LANGUAGES[language].tools):
        pytest.skip(f"none of {', '.join(LANGUAGES[language].tools)} is installed")


@pytest.mark.parametrize("language", PROGRAMS)
def test_right_and_wrong_programs_of_each_language(sandbox, language):
    needs(language, sandbox)
    assert grade(sandbox, PROGRAMS[language], STDIO, languages=[language]).value == 1.0
    wrong = grade(sandbox, PROGRAMS[language].replace("a + b", "a - b"), STDIO, languages=[language])
    assert (wrong.value, wrong.detail["kind"]) == (0.0, "wrong_answer")


@pytest.mark.parametrize("language", ["c", "cpp"])
def test_program_that_does_not_compile_names_the_compilers_error(sandbox, language):
    needs(language, sandbox)
    result = grade(sandbox, "int main() { return x; }", STDIO, languages=[language], credit="staged")
    assert (result.value, result.outcome, result.detail["kind"]) == (0.0, "wrong", "compile_error")
    assert "error" in result.detail["message"]


@pytest.mark.parametrize(
    ("language", "code", "kind"),
    [
        ("c", "int main(void) { for (;;); }", "cpu_limit"),
        ("c", "int main(void) { *(volatile int *)0 = 1; }", "crashed"),
        ("cpp", '#include "/etc/shadow"\nint main() {}', "compile_error"),
        ("javascript", "for (;;);", "cpu_limit"),
        ("javascript", "throw new Error('x')", "exception"),
    ],
)
def test_failures_of_other_languages_have_their_kinds(sandbox, language, code, kind):
    needs(language, sandbox)
    result = grade(sandbox, code, STDIO, languages=[language], cpu_s=0.5)
    assert (result.value, result.detail["kind"]) == (0.0, kind)


def test_label_decides_between_allowed_languages_and_a_record_may_demand_one(sandbox):
    needs("cpp", sandbox)
    reward = CodeTests(sandbox=sandbox, languages=["cpp", "python"])
    for label, code in (("python", RIGHT["stdio"]), ("cpp", PROGRAMS["cpp"])):
        assert reward(completion=fenced(code, label), tests=STDIO, prompt=prompt()).value == 1.0
    demanded = STDIO | {"language": "cpp"}
    result = reward(completion=fenced(RIGHT["stdio"]), tests=demanded, prompt=prompt())
    assert (result.value, result.outcome) == (0.0, "unparsable")
    with pytest.raises(DataError, match=r"kwargs\.languages"):
        grade(sandbox, RIGHT["stdio"], demanded)


def test_language_that_cannot_run_here_is_an_error_at_load(sandbox, monkeypatch, tmp_path):
    with pytest.raises(LoadError, match="'cobol'"):
        require(["cobol"], sandbox)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoadError, match="none of gcc, cc, clang"):
        require(["python", "c"], sandbox)
    outside = tmp_path / "node"
    outside.write_text("#!/bin/sh\necho hello\n")
    outside.chmod(0o755)
    with pytest.raises(LoadError, match="inside the sandbox"):
        require(["javascript"], sandbox)
