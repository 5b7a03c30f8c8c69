"""Several options in one word: the published sizes, `--preset S|B|L|++`, and what `--recipe` stands for."""

_OWN = {  # S, B, L: U-Nets with 4, 5 and 6 downsamplings (MedSegDiff sec. 3.2); B and ++: the published commands
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


_PUBLISHED = {  # the published commands, and what the published code does where they are silent
    "objective": "eps",
    "input_scale": 1.0,
    "mask_loss": "mse",
    "logit_skip": "none",
    "noise_schedule": "linear",
    "diffusion_steps": 1000,
    "learn_sigma": True,
    "use_scale_shift_norm": False,
    "dropout": 0.0,
    "batch_size": 8,
    "lr": 1e-4,
    "lr_anneal_steps": 0,
    "weight_decay": 0.0,
    "ema_rate": "0.9999",
    "schedule_sampler": "uniform",
    "augment": "none",
}


_STAGED = {  # docs/results.md has what it was measured against
    "objective": "x0",
    "mask_loss": "bce",
    "logit_skip": "both",
    "input_scale": 0.5,
    "concat_features": True,
    "diffusion_level": 1,
    "diffusion_channels": -1,
    "condition_steps": -1,
    "noise_draws": 2,
    "border_weight": 16.0,
    "second_stage_lr": 3.0,
    "dropout": 0.1,
    "augment": "light",
}


DEFAULT_RECIPE = "staged"


RECIPES = {
    "staged": {"v2": _STAGED},
    "published": {
        "v1": {**_PUBLISHED, "coarse_weight": 10.0, "coarse_loss": "mse"},
        "v2": {
            **_PUBLISHED,
            "coarse_weight": 1.0,
            "coarse_loss": "bce_dice",
            "coarse_ce": 10.0,
            "coarse_every": 5,
            "concat_features": False,
            "diffusion_channels": 0,
            "diffusion_level": 0,
        },
    },
}
