"""Solutions that lie: values that claim to be equal or exhaust the grader, patched builtins and runner."""

from tests.unit.rewards.code_cases import parse_attacks

ATTACKS = parse_attacks(r"""
### always_equal: a class whose == is always true passes `candidate(x) == y`
class A:
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __ne__ = __bool__ = lambda *_: True
    __hash__ = None
solve = lambda a, b: A()

### always_near: an object that survives abs(x - y) < eps passes a float test
class A:
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __ne__ = __bool__ = lambda *_: True
    __hash__ = None
    __sub__ = __rsub__ = __add__ = __radd__ = __abs__ = __neg__ = __getitem__ = __call__ = lambda self, *_: self
solve = lambda a, b: A()

### int_subclass: isinstance(x, int) is true for a subclass with a lying ==
class A(int):
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __ne__ = __bool__ = lambda *_: True
    __hash__ = None
solve = lambda a, b: A(1)

### float_subclass: the same for floats
class A(float):
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __ne__ = __bool__ = lambda *_: True
    __hash__ = None
    __sub__ = __rsub__ = __add__ = __radd__ = __abs__ = __neg__ = __getitem__ = __call__ = lambda self, *_: self
solve = lambda a, b: A(1)

### str_subclass: the same for texts
class A(str):
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __ne__ = __bool__ = lambda *_: True
    __hash__ = None
solve = lambda a, b: A('5')

### list_subclass: the same for lists
class A(list):
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __ne__ = __bool__ = lambda *_: True
    __hash__ = None
solve = lambda a, b: A([5])

### dict_subclass: a dict that has every key
class A(dict):
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __ne__ = __bool__ = lambda *_: True
    __hash__ = None
    __missing__ = lambda self, k: self
solve = lambda a, b: A()

### bool_like_numpy: an object with an item() method looks like a numpy scalar
class A:
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __ne__ = __bool__ = lambda *_: True
    __hash__ = None
    item = lambda self: 5
solve = lambda a, b: A()

### mock_any: unittest.mock.ANY equals everything
from unittest.mock import ANY
solve = lambda a, b: ANY

### class_lies: `__class__` says int, so isinstance does
class A:
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __ne__ = __bool__ = lambda *_: True
    __hash__ = None
    __class__ = property(lambda self: int)
solve = lambda a, b: A()

### name_lies: a type that calls itself builtins.int
class int(int):
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __ne__ = __bool__ = lambda *_: True
    __hash__ = None
int.__module__, int.__qualname__ = 'builtins', 'int'
solve = lambda a, b: int(1)

### metaclass_lies: a metaclass whose == makes `type(x) == int` true
class M(type):
    __eq__ = lambda *_: True
    __hash__ = lambda self: hash(int)
class A(metaclass=M):
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __ne__ = __bool__ = lambda *_: True
    __hash__ = None
solve = lambda a, b: A()

### reduce: an object that runs code where it is unpickled
import os
class A:
    def __reduce__(self):
        return (os._exit, (0,))
solve = lambda a, b: A()

### nan_value: nan makes `not x != y` and negated comparisons odd
solve = lambda a, b: float('nan')

### infinity: infinities overflow tolerances
solve = lambda a, b: float('inf')

### not_implemented: a comparison that returns NotImplemented is true
solve = lambda a, b: NotImplemented

### ellipsis: a singleton that is truthy
solve = lambda a, b: ...

### text_of_the_answer: 5 as a text
solve = lambda a, b: str(a + b)

### list_of_the_answer: the answer wrapped in a list
solve = lambda a, b: [a + b]

### complex_of_the_answer: abs() of a complex number is near
solve = lambda a, b: complex(1e9, 0)

### generator: a generator that yields the answer
def solve(a, b):
    yield a + b

### coroutine: a coroutine that would return it
async def solve(a, b):
    return a + b

### function_for_the_answer: a function instead of a value
solve = lambda a, b: (lambda: a + b)

### the_proxy_itself: returning what could replace the function in the tests
def solve(a, b):
    return solve

### namespace: returning globals to overwrite the tests' names
def solve(a, b):
    return globals()

### names_as_data: plain data that looks like a namespace
def solve(a, b):
    return {'solve': 5, '__builtins__': {}, 'check': None}

### answers_everything_dict: a defaultdict answers every question
from collections import defaultdict
def solve(a, b):
    return defaultdict(lambda: a + b)

### huge_int: an integer so large that comparing or printing it stops the grader
def solve(a, b):
    return 1 << 30_000_000

### huge_text: a text that fills the grader's memory
def solve(a, b):
    return '5' * 300_000_000

### deep_nest: a nest that overflows the grader's stack
def solve(a, b):
    x = 5
    for _ in range(100_000):
        x = [x]
    return x

### cycle: a list that contains itself
def solve(a, b):
    x = []
    x.append(x)
    return x

### exponential: shared lists that unfold to 2**60 items
def solve(a, b):
    x = [5]
    for _ in range(60):
        x = [x, x]
    return x

### hash_collisions: keys that all collide make a dict quadratic where it is rebuilt
def solve(a, b):
    return {i * (2**61 - 1): i for i in range(2000)}

### huge_decimal: a number whose comparison with an integer never ends
from decimal import Decimal
def solve(a, b):
    return Decimal('1e999999999')

### patched_abs: abs of anything is 0: float tests pass
import builtins
builtins.abs = lambda x: 0
solve = lambda a, b: 1e9

### patched_builtins: all, any, sorted, len, print, isinstance, type in the tests
import builtins
for name in ('all', 'any', 'isinstance', 'issubclass', 'callable', 'hasattr'):
    setattr(builtins, name, lambda *_: True)
builtins.sorted = builtins.len = builtins.sum = builtins.print = lambda *_, **__: 5
solve = lambda a, b: 0

### patched_type: every value looks like an int where it is encoded
import builtins
class A:
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __ne__ = __bool__ = lambda *_: True
    __hash__ = None
builtins.type = lambda *_: int
solve = lambda a, b: A()

### patched_math: isclose is always true
import math
math.isclose = lambda *_, **__: True
solve = lambda a, b: 0.0

### patched_assert: an AssertionError that cannot be raised
import builtins
builtins.AssertionError = None
solve = lambda a, b: 0

### patched_exec: the tests' exec does nothing
import builtins
builtins.exec = builtins.compile = lambda *_, **__: None
solve = lambda a, b: 0

### patched_import: whatever is imported later is ours
import builtins
builtins.__import__ = lambda *_, **__: None
solve = lambda a, b: 0

### patched_json: what the runner writes says done
import json
json.dumps = lambda *_, **__: '["done", ""]'
solve = lambda a, b: 0

### patched_encoder: the runner's own encoder, found in its frame, is replaced
import sys
globals_ = sys._getframe(1).f_globals
globals_['encode'] = lambda *_: ['done', '']
globals_['frame'] = lambda m: len(b'["done",""]').to_bytes(4, 'big') + b'["done",""]'
solve = lambda a, b: 0

### patched_runner: the runner's methods are replaced by ones that say done
import sys
self = sys._getframe(1).f_locals['self']
type(self)._call = lambda self, number, *_: ['done', 'nonce']
solve = lambda a, b: 0

### patched_modules: modules under the names that a grader may import
import sys, types
for name in ('rewards', 'rewards.code_wire', 'tests', 'json', 'pytest'):
    sys.modules[name] = types.ModuleType(name)
solve = lambda a, b: 0

### settrace: a trace function changes what functions return
import sys
sys.settrace(lambda f, e, a: f.f_locals.update(value=0, verdict='passed'))
sys.setprofile(lambda *_: None)
solve = lambda a, b: 0

### excepthook: hooks that swallow errors
import sys
sys.excepthook = sys.unraisablehook = lambda *_: None
def solve(a, b):
    raise AssertionError

### defines_check: its own check() never fails
def check(candidate): pass
candidate = 5
def solve(a, b):
    return 0

### random_seed: the tests' random numbers are known
import random
random.random = random.randint = lambda *_: 5
solve = lambda a, b: 0
""")
