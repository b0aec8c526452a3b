"""Arithmetic still to be done (policy line 10), and what a record may ask for."""

from tests.unit.rewards.math_cases.case import Case, pairs

ARITHMETIC = pairs(
    10,
    "right",
    [
        ("391", "17*23", "arithmetic is equal by default"),
        ("391", r"17 \times 23", "arithmetic is equal by default"),
        ("391", "17·23", "unicode's dot"),
        ("391", "{{17*23}}", "doubled braces are no template, but brackets"),
        ("5", "2+3", "arithmetic is equal by default"),
        ("5", "2+3=5", "with its result"),
        ("120", "5!", "a factorial"),
        ("120", r"\binom{10}{3}", "a binomial"),
        ("120", r"{10 \choose 3}", "the other binomial"),
        ("1024", "2^{10}", "a power"),
        ("2^{2005}", r"2 \cdot 2^{2004}", "large powers"),
        ("2", r"\log_{10} 100", "a logarithm"),
        ("3", r"\ln e^3", "a logarithm"),
        ("1/2", r"\sin 30^\circ", "a sine in degrees"),
        ("1/2", r"\sin(\pi/6)", "a sine in radians"),
        ("2", r"\sqrt{4}", "a root"),
        ("2", r"\sqrt[3]{8}", "a cube root"),
        ("2", "(2)", "brackets"),
        ("2", "|-2|", "an absolute value"),
    ],
) + pairs(
    10,
    "wrong",
    [
        ("391", "17*24", "another product"),
        ("5", "12 = 5", "the two sides differ (math-verify takes the last)"),
        ("5", "4+1=6", "the sides differ"),
        ("10", "2x = 10", "an equation still to be solved (math-verify takes the last side)"),
        ("1/2", r"\int_0^1 x\,dx", "the problem again (math-verify pays for it)"),
        ("55", r"\sum_{k=1}^{10} k", "the problem again (math-verify pays for it)"),
        ("1", r"\lim_{x \to 0} \frac{\sin x}{x}", "the problem again"),
        ("6", r"\gcd(12, 18)", "the problem again (math-verify pays for it)"),
        ("36", r"\operatorname{lcm}(12, 18)", "the problem again"),
        ("2", r"100 \bmod 7", "the problem again"),
        ("7", r"\max(3, 7)", "the problem again"),
        ("-2", r"\det \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "the problem again"),
        ("2x", r"\frac{d}{dx} x^2", "the problem again"),
    ],
) + pairs(
    10,
    "wrong",
    [
        ("391", "17*23", "arithmetic still to be done"),
        ("1/2", "2/4", "not in lowest terms"),
        ("2", "4/2", "a fraction that is whole"),
        ("2", r"\frac{4}{2}", "a fraction that is whole"),
        ("5", "2+3", "arithmetic still to be done"),
        ("x^2-1", "(x-1)(x+1)", "more operations than the gold"),
        ("1024", "2^{10}", "a power still to be taken"),
        (r"(1, 2)", "(1, 4/2)", "in a member"),
    ],
    simplified=True,
) + pairs(
    10,
    "right",
    [
        ("391", "391", "a literal"),
        ("1/2", r"\frac{1}{2}", "in lowest terms"),
        ("1/2", "0.5", "a decimal"),
        ("1.5", r"1\frac{1}{2}", "a mixed number"),
        (r"2\sqrt{2}", r"2\sqrt2", "a surd as the gold has it"),
        ("x+1", "1+x", "another order"),
        ("-3/4", "-3/4", "a negative fraction"),
    ],
    simplified=True,
)  # fmt: skip
TOLERANCE = pairs(
    4,
    "right",
    [
        ("3.14", "3.15", "within 0.01"),
        (r"\pi", "3.14", "a number and a symbol"),
        ("3.14", r"\pi", "a symbol and a number"),
        ("(1, 2)", "(1.005, 2)", "in a member"),
        (r"50\%", "0.505", "on the percentage's value"),
    ],
    tolerance=0.01,
) + pairs(
    4,
    "wrong",
    [
        ("3.14", "3.16", "beyond 0.01"),
        (r"\pi", "3.16", "beyond 0.01"),
        ("(1, 2)", "(1.02, 2)", "in a member"),
        ("x+1", "x+1.001", "symbols have no tolerance"),
        ("yes", "no", "words have no tolerance"),
    ],
    tolerance=0.01,
) + pairs(
    4,
    "right",
    [("1000", "1010", "1 % of it"), (r"100\pi", "314.5", "1 % of a symbol")],
    tolerance="1%",
) + pairs(
    4,
    "wrong",
    [("1000", "1011", "more than 1 %"), ("0", "0.001", "1 % of nothing"), (r"100\pi", "318", "more than 1 %")],
    tolerance="1%",
)  # fmt: skip
BAD_OPTIONS = [
    case
    for tolerance in (-0.01, "much", float("nan"), True)
    for case in pairs(9, "bad gold", [("5", "5", "an option that is no tolerance")], tolerance=tolerance)
] + pairs(9, "bad gold", [("5", "5", "a word is no yes or no")], simplified="false")

CASES: list[Case] = [*ARITHMETIC, *TOLERANCE, *BAD_OPTIONS]
