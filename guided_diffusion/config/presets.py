"""Sizes of the network, `--preset XS|S|B|L|++`: all but XS are published."""

_OWN = {  # S, B, L: 4, 5 and 6 downsamplings (MedSegDiff sec. 3.2); B and ++: the published commands
    "S": {"channel_mult": "1,1,2,2,4"},
    "B": {"channel_mult": "1,1,2,2,4,4"},
    "L": {"channel_mult": "1,1,2,2,4,4,4"},
    "++": {
        "channel_mult": "1,1,2,2,4,4",
        "num_channels": 512,
        "num_res_blocks": 12,
        "num_heads": 8,
        "attention_resolutions": "24",
        "use_scale_shift_norm": True,
    },
}
_EVERY = {
    "image_size": 256,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 1,
    "attention_resolutions": "16",
    "use_scale_shift_norm": False,
}
_SMALL = {  # a first run on a CPU
    "image_size": 128,
    "patch_size": 2,
    "num_channels": 16,
    "channel_mult": "1,2,4,8",
    "num_res_blocks": 1,
    "num_heads": 1,
    "attention_resolutions": "16",
    "use_scale_shift_norm": True,
}
PRESETS = {"XS": _SMALL} | {name: {**_EVERY, **values} for name, values in _OWN.items()}
