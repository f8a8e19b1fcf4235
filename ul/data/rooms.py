"""`rooms`: what its views show, and which buildings each part has; `ul.render` draws them."""

import itertools

# Name -> ImageNet-1000 index, out of the 100 that Taskonomy keeps. Insertion order is the label order.
OBJECTS = {
    "bookcase": 453, "dining_table": 532, "folding_chair": 559, "four_poster": 564, "pot_plant": 738,
    "refrigerator": 760, "studio_couch": 831, "television": 851, "toilet": 861, "vase": 883,
}  # fmt: skip
# Name -> Places-365 index, out of the 63 that Taskonomy keeps.
SCENES = {
    "attic": 26, "basement": 43, "bathroom": 45, "bedroom": 52, "corridor": 106,
    "dining_room": 121, "home_office": 176, "kitchen": 203, "living_room": 215, "staircase": 317,
}  # fmt: skip
_NAMES = tuple(f"synth{a}{b}" for a, b in itertools.product("abcd", "abcdefghij"))[:37]
BUILDINGS = {"train": _NAMES[:28], "val": _NAMES[28:30], "test": _NAMES[30:]}
DOMAINS = ("depth_euclidean", "normal", "segment_semantic", "class_object", "class_scene")
