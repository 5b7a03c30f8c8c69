"""The published sizes of the network, `--preset S|B|L|++`."""

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
PRESETS = {name: {**_EVERY, **values} for name, values in _OWN.items()}
