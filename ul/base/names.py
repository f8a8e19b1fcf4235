"""The one light table of names: methods, defenses, networks, encoders, weightings, data sets and tasks.

What a name stands for lies in its room; here is only what a parameter's check, a table or a figure needs to know of it,
so that none of them imports torch. Tests hold each table to its room's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from . import budgets

CLEAN, NOISE = "clean", "noise"
OWN = "own"  # the method's name where the images are a user's
RECIPES = ("published", "cpu")


@dataclass(frozen=True)
class Method:
    """A poison: where it is made, and the budget that it is held to.

    module: below ul.poisons, imported when the poison is made, so that an edit of one method leaves results of the
    others valid. Its function of the method's name takes (images, labels, eps=, seed=), or with `recipes` (the name of
    the module's table) takes (Target, eps=, settings=). budget: (eps, values an image) -> largest size in `norm`.
    """

    title: str
    module: str
    recipes: str | None = None
    norm: str | None = "linf"  # a key of pixels.measure; None: the paper sets no budget
    budget: Callable[[float, int], float] = budgets.linf
    random: bool = True  # another seed gives another poison
    classes: int = 2  # it needs at least
    tasks: bool = False  # made against all targets of the split, not one

    def wanted(self, target: str) -> tuple[str, ...] | None:
        """Which targets of a data set to load for it; None: all there are."""
        return None if self.tasks else (target,)


METHODS: dict[str, Method] = {
    "noise": Method("Uniform noise", "handcrafted", classes=1),
    "noise_classwise": Method("Uniform noise, one a class", "handcrafted", classes=1),
    "em": Method("EM (Huang et al. 2021)", "minimise", "EM_RECIPES"),
    "em_classwise": Method("EM, class-wise (Huang et al. 2021)", "minimise", "EM_CLASSWISE_RECIPES"),
    "rem": Method("REM (Fu et al. 2022)", "minimise", "REM_RECIPES"),
    "tap": Method("TAP (Fowl et al. 2021)", "targeted", "TAP_RECIPES"),
    "hypo": Method("HYPO (Tao et al. 2022)", "targeted", "HYPO_RECIPES"),
    "lsp": Method("LSP (Yu et al. 2022)", "handcrafted", norm="l2", budget=budgets.lsp),
    "ops": Method("OPS (Wu et al. 2023)", "handcrafted", norm="l0", budget=budgets.one_pixel, random=False, classes=1),
    "em_ops": Method("EM and OPS (Wu et al. 2023)", "minimise", "EM_RECIPES", norm="linf_but_one"),
    "ar": Method("AR (Sandoval-Segura et al. 2022)", "autoregressive", norm="l2", budget=budgets.ar, classes=1),
    "dc": Method("DeepConfuse (Feng et al. 2019)", "generator", "DC_RECIPES"),
    "ntga": Method("NTGA (Yuan and Wu 2021)", "kernel", "NTGA_RECIPES"),
    "cuda": Method("CUDA (Sadasivan et al. 2023)", "handcrafted", norm=None, classes=1),
    "tue": Method("TUE (Ren et al. 2023)", "contrastive", "TUE_RECIPES"),
    "sep": Method("SEP (Chen et al. 2023)", "targeted", "SEP_RECIPES"),
    "mtue": Method("MTUE: EM against every task", "multitask", "MTUE_RECIPES", tasks=True),
}
DEFENSES = (
    "none", "no_augmentation", "cutout", "cutmix", "mixup", "jpeg", "gray", "bdr", "blur", "ueraser_lite", "ueraser",
    "ueraser_max", "at", "orthogonal",
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A classifier. several_layers: UD splits the layers of a network in two groups."""

    several_layers: bool = True
    transformer: bool = False


NETWORKS: dict[str, Network] = {
    "linear": Network(several_layers=False),
    "lenet5": Network(),
    "resnet8": Network(),
    "senet8": Network(),
    "vit_tiny": Network(transformer=True),
    "resnet18": Network(),
    "resnet50": Network(),
    "senet18": Network(),
    "vit_small": Network(transformer=True),
}
ENCODERS = ("resnet8", "resnet8_coarse", "resnet18", "resnet50", "vit", "mod_squad")
WEIGHTINGS = ("equal", "balanced", "uncertainty", "pcgrad", "mgda", "imtlg", "aligned", "gradvac")

# Tasks where none are named: of views with several labels (rooms, Taskonomy: the paper's four), and of classified
# images, whose other labels are derived.
VIEWS = ("class_object", "class_scene", "keypoints2d", "depth_euclidean", "segment_unsup2d")
HEADLINE = ("class_scene", "keypoints2d", "depth_euclidean", "segment_unsup2d")
CLASSIFIED = ("label", "keypoints2d", "edge_texture", "segment_unsup2d", "autoencoding")


@dataclass(frozen=True)
class DataSet:
    """What a benchmark on a data set uses by default; how it is read is in `ul.data.sources`."""

    target: str  # the image-level target that poisons and classifiers use
    classes: int | None  # None: as many as the images have
    parts: tuple[str, ...] = ("train", "test")
    size: int | None = None  # side in pixels that the benchmark uses; None: native
    flip: bool = True  # mirrored images keep their label
    eps: float = 8 / 255  # strength that bites on this set (8/255 is the published budget)
    tasks: tuple[str, ...] = CLASSIFIED
    a_users: bool = False  # a user's own photographs; the cross-task study takes public sets only


DATASETS: dict[str, DataSet] = {
    "rooms": DataSet("class_object", 10, ("train", "val", "test"), size=32, tasks=VIEWS),
    "mnist": DataSet("label", 10, flip=False, eps=128 / 255),
    "cifar10": DataSet("label", 10),
    "cifar100": DataSet("label", 100),
    "taskonomy": DataSet("class_scene", 63, ("train", "val", "test", "all"), size=64, tasks=HEADLINE),
    "taskonomy_medium": DataSet("class_scene", 63, ("train", "val", "test", "all"), size=64, tasks=HEADLINE),
    "folder": DataSet("label", None, size=32, a_users=True),
}


@dataclass(frozen=True)
class Task:
    """How a task is scored. dense: it has an answer for every pixel; higher: is better."""

    metric: str
    unit: str
    higher: bool = True
    dense: bool = True


_CLASS = Task("accuracy", "share", dense=False)
_REGRESSED = Task("mean absolute error", "label SDs", higher=False)
TASKS: Mapping[str, Task] = {
    "label": _CLASS,
    "class_object": _CLASS,
    "class_scene": _CLASS,
    "segment_semantic": Task("mean IoU", "share"),
    "depth_euclidean": Task("RMSE", "metres", higher=False),
    "normal": Task("mean angle", "degrees", higher=False),
    "keypoints2d": _REGRESSED,
    "edge_texture": _REGRESSED,
    "reshading": _REGRESSED,
    "autoencoding": _REGRESSED,
    "segment_unsup2d": Task("boundary AP", "share"),
}
REGIMES = ("multi", "single", "transfer")  # cross-task: trained together, alone, new heads on a frozen encoder
DEPARTURES = {  # of the paper's public code from SAL's definition (ul.sharpness.public_code)
    "train_loss": "the loss that SAL counts from is the epoch's running training loss: other weights, batch statistics",
    "augmented": "every evaluation and every step sees another random crop of the images",
    "late_projection": "plain steps (lr .1) through a whole pass, then one projection; NaN weights are kept",
    "drop_last": "images of the last incomplete batch are left out",
}
MOVED = ("differing", "largest", "random", "rest")  # sets of parameters that the convergence study moves
EXECUTORS = ("processes", "dask", "ray")  # where runs go
RARE = ("error", "drop")  # what happens to test views of a class that training never shows


def default_target(part: str) -> str:
    """The image-level target that poisons and classifiers of `<data set>/<part>` use."""
    known = DATASETS.get(part.partition("/")[0])
    return known.target if known else "label"


def flips(part: str) -> bool:
    """Whether mirrored images of `<data set>/<part>` keep their label."""
    known = DATASETS.get(part.partition("/")[0])
    return known.flip if known else True
