"""A small copy of the real stages' dependencies."""

import dataclasses
from pathlib import Path

from reangle_jax import config
from reangle_jax.data import files
from reangle_jax.run import External, Ledger, Stage, Unit, run_stage, view_file

ALL = ["read", "tune", "make left:10", "make up:8"]


def make_settings(tmp_path, **changes):
    video = tmp_path / "clip.mp4"
    if not video.exists():
        video.write_bytes(b"the clip")
    values = config.get_default().to_dict() | {"video": str(video), "views": ("left:10", "up:8")}
    for key, value in changes.items():
        group, _, leaf = key.rpartition("__")
        (values[group] if group else values)[leaf] = value
    return config.parse(values)


@dataclasses.dataclass
class Chain:
    """read -> tune -> make (one unit a view): a small copy of the real dependencies; `calls` says what ran."""

    calls: list

    def stages(self):
        def read(settings, folder, work):
            for _ in work:
                self.calls.append("read")
                content = f"frames {settings.start} {settings.seed // 100}"
                files.atomic_write_bytes(folder / "input/frames.npz", content.encode())

        def tune(settings, folder, work):
            for unit in work:
                self.calls.append("tune")
                with files.atomic_folder(folder / unit.outputs[0]) as made:
                    (made / "lora.safetensors").write_text(f"{settings.finetune.steps} {settings.seed}")

        def make(settings, folder, work):
            for unit in work:
                self.calls.append(f"make {unit.view}")
                content = f"{unit.view} {settings.sample.steps} {settings.seed}"
                files.atomic_write_bytes(folder / unit.outputs[0], content.encode())

        def first(settings):
            video = External("config.video", Path(settings.video))
            return (Unit(settings=("start", "seed"), external=(video,), outputs=("input/frames.npz",)),)

        two = (Unit(settings=("finetune", "seed"), inputs=("input/frames.npz",), outputs=("lora",)),)

        def views(settings):
            inputs = ("lora/lora.safetensors",)
            return tuple(
                Unit(v, settings=("sample", "seed"), inputs=inputs, outputs=(view_file(v, "frames.npz"),), view=v)
                for v in settings.views
            )

        return [
            Stage("read", 1, first, read),
            Stage("tune", 1, lambda settings: two, tune),
            Stage("make", 1, views, make),
        ]

    def go(self, root, settings):
        self.calls.clear()
        with Ledger.opened(root, settings) as ledger:
            for stage in self.stages():
                run_stage(stage, ledger)
        return list(self.calls)
