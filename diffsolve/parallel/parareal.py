"""stub"""
from dataclasses import dataclass
from diffsolve.parallel.base import Parallel
class Parareal(Parallel): pass
