"""Butcher tableaux of explicit Runge-Kutta methods, in exact fractions.

One's own takes a line: `Butcher("mine", a=[[], [F(1, 2)], [-1, 2]], b=[F(1, 6), F(2, 3), F(1, 6)], order=3)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction as F

__all__ = ["BOSH3", "DOPRI5", "DOPRI8", "HEUN", "KUTTA38", "MIDPOINT", "RALSTON", "RK4", "SSPRK3", "TSIT5", "Butcher"]


@dataclass(frozen=True)
class Butcher:
    """The coefficients of an explicit Runge-Kutta method.

    Args:
        a: the strictly lower triangle, row by row: () for the first stage, then (a_21,), (a_31, a_32), ...
        b: the weights of the stages.
        order: the classical order.
        embedded: for the control of the step, {order: weights} of the methods of lower order in the same stages. One
            more weight than stages is that of the first stage of the next step.
        middle: for dense output, weights of order 4 for the middle of the step, on the same stages and the next one.

    The abscissae are the row sums, c_i = sum_j a_ij.
    """

    name: str
    a: Sequence[Sequence[F | int]]
    b: Sequence[F | int]
    order: int
    embedded: Mapping[int, Sequence[F | int]] = field(default_factory=dict, compare=False)
    middle: Sequence[F | int] = field(default=(), compare=False)
    c: tuple[F, ...] = field(init=False)

    def __post_init__(self) -> None:
        a, b = tuple(tuple(map(F, row)) for row in self.a), tuple(map(F, self.b))
        if [len(row) for row in a] != list(range(len(b))):
            raise ValueError(f"a={self.a!r}: rows of 0, 1, .., {len(b) - 1} entries are needed for {len(b)} stages")
        if sum(b) != 1:
            raise ValueError(f"b={self.b!r} must sum to 1")
        c = tuple(sum(row, F(0)) for row in a)
        if not all(0 <= x <= 1 for x in c):
            raise ValueError(f"a={self.a!r}: its row sums must lie between 0 and 1, so that no stage leaves the step")
        embedded = {order: tuple(map(F, weights)) for order, weights in self.embedded.items()}
        for order, weights in embedded.items():
            if sum(weights) != 1 or len(weights) not in (len(b), len(b) + 1):
                raise ValueError(f"embedded[{order}]={self.embedded[order]!r}: {len(b)} or one more weights of sum 1")
        middle = tuple(map(F, self.middle))
        if middle and (sum(middle) != F(1, 2) or len(middle) != len(b) + 1):
            raise ValueError(f"middle={self.middle!r}: {len(b) + 1} weights of sum 1/2 are needed")
        object.__setattr__(self, "embedded", embedded)
        object.__setattr__(self, "middle", middle)
        object.__setattr__(self, "a", a)
        object.__setattr__(self, "b", b)
        object.__setattr__(self, "c", c)

    def __repr__(self) -> str:
        return f"Butcher({self.name!r}, stages={len(self.b)}, order={self.order})"


def _decimals(name: str, order: int, c: str, rows: str, *, differences: Mapping[int, str], middle: str = "") -> Butcher:
    """From published decimals: c, then the rows of a from the third stage's on and b, without the first column.

    The first column is what is left of c_i, and of 1: row sums are then exact, and it is off the published numbers
    by their last digit. So are the embedded weights, of which the differences b - b_hat are given but for the first,
    and those of the middle, of which 1/2 is the sum.
    """
    sums = [*map(F, c.split()), F(1)]
    table: list[list[F]] = [[]]
    for total, row in zip(sums[1:], ["", *rows.split(";")], strict=True):
        rest = [F(x) for x in row.split()]
        table.append([total - sum(rest, F(0)), *rest])
    b, embedded = table[-1], {}
    for lower, text in differences.items():
        e = [F(x) for x in text.split()]
        full = [*b, F(0)][: len(e) + 1]
        embedded[lower] = [w - x for w, x in zip(full, [-sum(e, F(0)), *e], strict=True)]
    half = [F(x) for x in middle.split()]
    return Butcher(name, table[:-1], b, order, embedded, [F(1, 2) - sum(half, F(0)), *half] if half else ())


HEUN = Butcher("heun", [[], [1]], [F(1, 2), F(1, 2)], 2)
MIDPOINT = Butcher("midpoint", [[], [F(1, 2)]], [0, 1], 2)
RALSTON = Butcher("ralston", [[], [F(2, 3)]], [F(1, 4), F(3, 4)], 2)
SSPRK3 = Butcher("ssprk3", [[], [1], [F(1, 4), F(1, 4)]], [F(1, 6), F(1, 6), F(2, 3)], 3)
"""Shu and Osher, J. Comput. Phys. 77 (1988): strong stability preserving."""
BOSH3 = Butcher(
    "bosh3",
    [[], [F(1, 2)], [0, F(3, 4)]],
    [F(2, 9), F(1, 3), F(4, 9)],
    3,
    embedded={2: [F(7, 24), F(1, 4), F(1, 3), F(1, 8)]},
)
"""Bogacki and Shampine, Appl. Math. Lett. 2 (1989). Its fourth stage, which only estimates the error, is no stage
here but the first of the next step; so it is with the others."""
RK4 = Butcher("rk4", [[], [F(1, 2)], [0, F(1, 2)], [0, 0, 1]], [F(1, 6), F(1, 3), F(1, 3), F(1, 6)], 4)
KUTTA38 = Butcher("rk4-38", [[], [F(1, 3)], [F(-1, 3), 1], [1, -1, 1]], [F(1, 8), F(3, 8), F(3, 8), F(1, 8)], 4)
"""Kutta's 3/8 rule (1901)."""
DOPRI5 = Butcher(
    "dopri5",
    [
        [],
        [F(1, 5)],
        [F(3, 40), F(9, 40)],
        [F(44, 45), F(-56, 15), F(32, 9)],
        [F(19372, 6561), F(-25360, 2187), F(64448, 6561), F(-212, 729)],
        [F(9017, 3168), F(-355, 33), F(46732, 5247), F(49, 176), F(-5103, 18656)],
    ],
    [F(35, 384), 0, F(500, 1113), F(125, 192), F(-2187, 6784), F(11, 84)],
    5,
    embedded={4: [F(5179, 57600), 0, F(7571, 16695), F(393, 640), F(-92097, 339200), F(187, 2100), F(1, 40)]},
    middle=[
        F(6025192743, 60171106304),
        0,
        F(51252292925, 130801643196),
        F(-2691868925, 90256659456),
        F(187940372067, 3189068634112),
        F(-1776094331, 39487288512),
        F(11237099, 470086768),
    ],
)
"""Dormand and Prince, J. Comput. Appl. Math. 6 (1980); the middle by Shampine, Math. Comp. 46 (1986)."""
TSIT5 = _decimals(
    "tsit5",
    5,
    "0 0.161 0.327 0.9 0.9800255409045097 1",
    """
    0.335480655492357;
    -6.359448489975075 4.3622954328695815;
    -11.748883564062828 7.4955393428898365 -0.09249506636175525;
    -12.92096931784711 8.159367898576159 -0.071584973281401 -0.028269050394068383;
    0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 2.324710524099774
    """,
    differences={
        4: """
        -0.0008164344596567469 0.007880878010261995 -0.1447110071732629 0.5823571654525552 -0.45808210592918697
        0.015151515151515152
        """
    },
    middle="""
    0.01135625 0.3956090305604531 -0.34475214352593547 1.3161853649581647 -1.0170608542936512 0.03125
    """,
)
"""Tsitouras, Comput. Math. Appl. 62 (2011), in its 16 published digits; the middle is its interpolant's."""
DOPRI8 = _decimals(
    "dopri8",
    8,
    """
    0 0.05260015195876773187855875445 0.07890022793815159781783813167 0.1183503419072273967267571975
    0.2816496580927726032732428025 0.3333333333333333333333333333 0.25 0.3076923076923076923076923077
    0.6512820512820512820512820513 0.6 0.8571428571428571428571428571 1
    """,
    """
    0.05917517095361369836337859875;
    0 0.08876275643042054754506789813;
    0 -0.8845494793282860853448649627 0.9248340032617920031157379665;
    0 0 0.1708286087294738712796044822 0.1254676875668224250166918141;
    0 0 0.1702522110195440393149780603 0.06021653898045596068502193973 -0.017578125;
    0 0 0.1703839257122399938102140547 0.1072620304463732846518091992 -0.01531943774862440175279361582
    0.00827378916381402288758473766;
    0 0 -3.360892629446941294068571098 -0.8682193468417260068181898915 27.59209969944670830494156008
    20.1540675504778934086186789 -43.48988418106995884773662551;
    0 0 -2.488114619971667641926425865 -0.5902908268368429963714464757 21.23005144818119423472889499
    15.27923363288242358325969229 -33.28821096898486291944532656 -0.02033120170850862613582229286;
    0 0 5.186372428844063708300238532 1.091437348996729578185002547 -8.149787010746926125139972674
    -18.52006565999695986415661807 22.73948709935050428189700567 2.493605552679652389870893968
    -3.046764471898219500382366902;
    0 0 -10.53449546673725019840666899 -2.000872058224862499096757184 -17.95893186311879891727659505
    27.94888452941996005084998088 -2.858998277135023694740655087 -8.872856933530629544335492893
    12.36056717579430306472662015 0.643392746015763530355970484;
    0 0 0 0 4.450312892752408881441139506 1.89151789931450038304281599 -5.801203960010584781467211423
    0.3111643669578198944089160624 -0.1521609496625160785561788068 0.2013654008040303483747765375
    0.0447106157277725905176885569
    """,
    differences={
        5: """
        0 0 0 0 -1.225156446376204440720569753 -0.4957589496572501915214079952 1.664377182454986536961530415
        -0.350328848749973681688648729 0.3341791187130174790297318841 0.08192320648511571246570742613
        -0.02235530786388629525884427845
        """,
        3: """
        0 0 0 0 4.450312892752408881441139506 1.89151789931450038304281599 -5.801203960010584781467211423
        -0.4226823213237919629324456791 -0.1521609496625160785561788068 0.2013654008040303483747765375
        0.022651792198360825811806204
        """,
    },
)
"""Hairer, Norsett and Wanner's DOP853 (Solving Ordinary Differential Equations I, II.10), in 28 digits.

Twelve stages, of which two weaker methods, of order 5 and 3, estimate the error. The further ones interpolate, and are
left out.
"""
