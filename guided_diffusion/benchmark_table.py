"""The benchmark's figures in words and tables."""

from .benchmark import CACHED, DEFAULT_STEPS, FAST, PLAIN, PLAIN_STEPS, TRAINING_FACTOR
from .text_table import text_table


def describe(result):
    """What is measured, and what was counted beforehand."""
    machine, settings, flops = result["machine"], result["settings"], result["flops"]
    where = f"{machine['gpu']}, " if machine["gpu"] else ""
    return "\n".join(
        [
            f"machine: {where}{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, load "
            f"{machine['load']}, torch {machine['torch']}",
            f"network: {settings['version']}, {settings['image_size']} pixels, {settings['num_channels']} channels, "
            f"{result['parameters'] / 1e6:.2f} M parameters",
            f"FLOPs of one image: {in_giga(flops['forward'])} G forward = {in_giga(flops['condition'])} G condition, "
            f"once an image, + {in_giga(flops['step'])} G a denoising step",
            f"FLOPs of a training step: {in_giga(flops['training_step'])} G = {TRAINING_FACTOR} (forward, and backward "
            f"as two) x {settings['batch_size']} images x forward",
            *(f"{path} path: {what}" for path, what in result["paths"].items()),
        ]
    )


def report(result):
    """All figures as text, with a blank line around each section."""
    lines, sections = [], []
    for precision, best in sorted(result["peak"].items(), reverse=True):
        kinds = ", ".join(f"{kind} {value / 1e9:.0f}" for kind, value in best.items())
        lines.append(f"peak of this machine in this run in {precision}, GFLOP/s: {kinds}; the larger counts below")
    if lines:
        sections.append("\n".join(lines))
    compared = compared_rows(result)
    if compared:
        head = ["", "path", "seconds", "min..max", "images/s", "GFLOP/s", "of peak", "memory MB", "warm-up s"]
        sections.append(text_table(head, compared) + f"\nmemory: {result['memory']}")
    if result.get("training_table"):
        head = ["training step, fast", "seconds", "min..max", "images/s", "GFLOP/s", "of matmul peak", "memory MB"]
        sections.append(text_table(head, [training_row(entry) for entry in result["training_table"]]))
    if "sampling_table" in result:
        head = ["sampling of one image", "members", "seconds", "min..max", "times"]
        rows = [[f"{c['steps']} steps", c["members"], *spread(c), len(c["times"])] for c in result["sampling_table"]]
        sections.append(text_table(head, rows))
    if "data" in result:
        sections.append(data_table(result["data"]))
    return "".join(f"\n{section}\n" for section in sections)


def training_row(entry):
    """The cells of a training step on a batch of one size."""
    rates = [f"{entry['images_per_second']:.3g}", in_giga(entry["flops_per_second"])]
    rates += [f"{entry['share_of_matmul_peak']:.0%}", f"{entry['peak_memory_bytes'] / 2**20:.0f}"]
    return [f"{entry['batch_size']} images", *spread(entry), *rates]


def compared_rows(result):
    """The rows of what was measured by both paths."""
    settings, rows = result["settings"], []
    for key, what in (
        ("step", f"denoising step, {settings['num_ensemble']} members"),
        ("training_step", f"training step, {settings['batch_size']} images"),
        ("sampling", f"sampling, {result.get('sampling', {}).get('steps')} steps, {settings['num_ensemble']} members"),
    ):
        if key not in result:
            continue
        for path in (PLAIN, FAST):
            entry = result[key][path]
            rates = [f"{entry['images_per_second']:.3g}", in_giga(entry["flops_per_second"])]
            rates += [f"{entry['share_of_peak']:.0%}", f"{entry['peak_memory_bytes'] / 2**20:.0f}"]
            rows.append([what, path, *spread(entry), *rates, f"{entry['warm_up_seconds']:.3g}"])
        if "cached" in result[key]:
            cached = result[key]["cached"]
            rows.append([what, "plain, condition cached", *spread(cached)])
            rows.append(["  plain, condition cached / fast", "", f"{cached['ratio']:.2f} x", ratio_spread(cached)])
        rows.append(["  plain / fast", "", f"{result[key]['ratio']:.2f} x", ratio_spread(result[key])])
        if not result["machine"]["gpu"]:
            rows.append(["  plain / fast, by processor time", "", f"{result[key]['processor_ratio']:.2f} x"])
        if "by_itself" in result[key]:
            for path, label in ((PLAIN, "plain"), (CACHED, "plain, condition cached")):
                if path not in result[key]["by_itself"]["seconds"]:
                    continue
                seconds, ratio = (result[key]["by_itself"][figure][path] for figure in ("seconds", "ratio"))
                rows.append([what, f"{label}, freed memory handed back", f"{seconds:.3g}"])
                rows.append([f"  {label}, freed memory handed back / fast", "", f"{ratio:.2f} x"])
                if not result["machine"]["gpu"]:
                    ratio = result[key]["by_itself"]["processor_ratio"][path]
                    rows.append(["    by processor time", "", f"{ratio:.2f} x"])
    if "ensemble" in result:
        rows.append(
            [
                f"  {PLAIN_STEPS} plain steps / {DEFAULT_STEPS} fast, extrapolated",
                "",
                f"{result['ensemble']['ratio']:.0f} x",
            ]
        )
    if "condition" in result:
        rows.append(["condition of one image", FAST, *spread(result["condition"])])
    if "sampling" in result:
        rows.append(["  largest difference of masks", "", f"{result['sampling']['largest_difference']:.1e}"])
    return rows


def data_table(data):
    """Loading, and how many times faster than the naive way."""
    head = ["loading, one process", "images", "seconds", "min..max", "images/s", "by naive", "min..max"]
    rows = []
    for name, what in (
        ("isic", "pictures, 320 x 256"),
        ("brats_naive", f"volumes, {data['brats_naive']['volumes']}: naive, decompressed for every slice"),
        ("brats_cold", "  cold: into a cache on disk, then from it"),
        ("brats_cached", "  cached: from the cache that is there"),
    ):
        entry = data[name]
        row = [what, entry["items"], *spread(entry), f"{entry['items_per_second']:.3g}"]
        rows.append(row + ([f"{entry['ratio']:.1f} x", ratio_spread(entry)] if "ratio" in entry else []))
    return text_table(head, rows)


def in_giga(value):
    """A number in billions, of three digits."""
    return f"{value / 1e9:.3g}" if value < 1e12 else f"{value / 1e9:.0f}"


def spread(entry):
    """The cells of a timing: median, min..max."""
    return [f"{entry['seconds']:.3g}", f"{entry['min']:.3g}..{entry['max']:.3g}"]


def ratio_spread(entry):
    """The cell of a ratio's least and most."""
    return f"{entry['ratio_min']:.2f}..{entry['ratio_max']:.2f}"
