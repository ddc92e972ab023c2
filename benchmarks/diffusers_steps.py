"""The fine-tuning step and the sampling step as diffusers and peft do them: the other side of `against_diffusers`.

    python -m benchmarks.diffusers_steps --program finetune    # or sample; --size small

By itself it times one of them at full size with random weights, drawn on the device, and says the most memory that
PyTorch's allocator gave out: what stands beside ``python -m benchmarks.full_size_run``. Fine-tuning recomputes its
blocks (``enable_gradient_checkpointing``): otherwise it needs more than any one device has.
"""

import contextlib
import functools
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch

from reangle_jax import commands

GUIDANCE, SAMPLING_STEPS = 6.0, 40
GIB = 2.0**30
ADAPTED = ["to_q", "to_k", "to_v", "to_out.0"]


class Theirs:
    """The two programs.

    Args:
        transformer: the frozen transformer, without adapters.
        vae: the frozen autoencoder.
        case: an `against_diffusers.Case`: networks and sizes.
        data: a `finetune.TrainingSet`.
        adapters: a file of them; None for fresh ones.
    """

    name = "diffusers + peft"

    def __init__(self, transformer: Any, vae: Any, case: Any, data: Any, *, adapters: Path | None = None):
        self.case, self.device, self.dtype = case, device(), getattr(torch, case.transformer.param_dtype)
        self.transformer, self.vae = transformer, vae
        self.scheduler = diffusers.CogVideoXDDIMScheduler(
            clip_sample=False,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=1.0,
            timestep_spacing="trailing",
        )
        self.scheduler.set_timesteps(SAMPLING_STEPS)
        pipeline = diffusers.CogVideoXImageToVideoPipeline(
            tokenizer=None, text_encoder=None, vae=self.vae, transformer=self.transformer, scheduler=self.scheduler
        )
        if adapters:
            pipeline.load_lora_weights(adapters)
        else:
            transformer.add_adapter(peft.LoraConfig(r=case.rank, lora_alpha=case.rank, target_modules=ADAPTED))
        pipeline.to(self.device)
        self.transformer.requires_grad_(False)
        self.vae.requires_grad_(False)
        self.trained = {name: x for name, x in self.transformer.named_parameters() if "lora_" in name}
        for value in self.trained.values():
            value.data = value.data.float()
            value.requires_grad_(True)
        options = case.options
        settings = {"lr": options.learning_rate, "betas": options.betas, "weight_decay": options.weight_decay}
        self.optimiser = torch.optim.AdamW(self.trained.values(), fused=True, **settings)
        rotary = pipeline._prepare_rotary_positional_embeddings
        self.rope = rotary(*case.pixels, case.latents[0], self.device)
        self.data = {name: self.tensor(value) for name, value in data._asdict().items()}
        self.autocast = contextlib.nullcontext
        if self.dtype != torch.float32:
            self.autocast = functools.partial(torch.autocast, self.device, self.dtype)

    @classmethod
    def of_folder(cls, folder: Path, case: Any, data: Any) -> "Theirs":
        """With the weights of ``published/transformer``, ``published/vae`` and ``lora.safetensors``."""
        networks = (diffusers.CogVideoXTransformer3DModel, diffusers.AutoencoderKLCogVideoX)
        dtype = getattr(torch, case.transformer.param_dtype)
        parts = (
            network.from_pretrained(folder / "published" / part, torch_dtype=dtype)
            for network, part in zip(networks, ("transformer", "vae"), strict=True)
        )
        return cls(*parts, case, data, adapters=folder / "lora.safetensors")

    @classmethod
    def random(cls, case: Any, data: Any) -> "Theirs":
        """With random weights, which are drawn where they stay, and fresh adapters."""
        from converters.families.cogvideox import write_transformer, write_vae

        dtype, parts = getattr(torch, case.transformer.param_dtype), []
        for network, fields in (
            (diffusers.CogVideoXTransformer3DModel, write_transformer(case.transformer)),
            (diffusers.AutoencoderKLCogVideoX, write_vae(case.vae)),
        ):
            with torch.device("meta"):
                model = network.from_config(fields).to(dtype)
            parts.append(_fill(model.to_empty(device=device())))
        return cls(*parts, case, data)

    def tensor(self, x: Any) -> torch.Tensor:
        """An array on the device; videos as theirs lie, [B, T, C, H, W]."""
        x = np.array(jnp.asarray(x).astype(jnp.float32) if x.dtype == jnp.bfloat16 else x)
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 2) if x.ndim == 5 else x)).to(self.device)

    def drawn(self, draws: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Random numbers of a step of ours (`against_diffusers.draws`) for `finetune`."""
        tensors = {name: self.tensor(value) for name, value in draws.items()}
        return tensors | {name: tensors[name].long() for name in ("pick", "t")}

    def predict(self, latents: torch.Tensor, text: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The transformer's v."""
        with self.autocast():
            arguments = {"image_rotary_emb": self.rope, "return_dict": False}
            return self.transformer(latents.to(self.dtype), text.to(self.dtype), t, **arguments)[0]

    def finetune(self, draw: dict[str, torch.Tensor]) -> float:
        """One step; its loss."""
        data, pick, vae = self.data, draw["pick"], self.vae
        with torch.no_grad():
            z = data["mean"][pick] + torch.exp(0.5 * data["logvar"][pick]) * draw["posterior"]
            z = z * vae.config.scaling_factor
            image = data["first"][pick].float() / 127.5 - 1.0 + draw["pixels"]
            moments = vae.encode(image.permute(0, 3, 1, 2)[:, :, None].to(vae.dtype)).latent_dist
            first = (moments.mean + moments.std * draw["condition"].permute(0, 2, 1, 3, 4)) * vae.config.scaling_factor
            first = first.permute(0, 2, 1, 3, 4).float()
            condition = torch.cat([first, first.new_zeros(z.shape[0], z.shape[1] - 1, *z.shape[2:])], dim=1)
            condition = torch.where(draw["kept"], condition, torch.zeros_like(condition))
            noised = self.scheduler.add_noise(z, draw["eps"], draw["t"])
            target = self.scheduler.get_velocity(z, draw["eps"], draw["t"])
            mask = data["mask"][pick][:, :, None]
        v = self.predict(torch.cat([noised, condition], dim=2), data["text"][pick], draw["t"])
        loss = (mask * (v.float() - target).square()).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.values(), self.case.options.max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss.item()

    @torch.no_grad()
    def sample(self, latents: torch.Tensor, index: int, condition: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The latents after one guided step; condition and text of both passes."""
        t = self.scheduler.timesteps[index]
        both = torch.cat([torch.cat([latents, latents]), condition], dim=2)
        without, given = self.predict(both, text, t.expand(2).to(self.device)).float().chunk(2)
        v = without + GUIDANCE * (given - without)
        latents = self.scheduler.step(v, t, latents.float(), return_dict=False)[0].to(latents.dtype)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return latents

    def adapters(self) -> dict[str, np.ndarray]:
        """As they stand now, under their published names."""
        named = self.trained.items()
        return {f"transformer.{name.replace('.default_0', '')}": x.detach().cpu().numpy() for name, x in named}


def device() -> str:
    """Where PyTorch computes."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@torch.no_grad()
def _fill(model: torch.nn.Module) -> torch.nn.Module:
    """Random values, such that activations stay about as large as they are."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.ndim < 2:
            value.fill_(float(name.endswith("weight")))  # of norms; biases
        else:
            value.normal_(0, math.prod(value.shape[1:]) ** -0.5)
    return model


def timed(size: str, program: str, steps: int, seconds: float = math.inf) -> dict[str, Any]:
    """Figures of one program with random weights.

    Args:
        size: ``small`` or ``full``.
        program: ``finetune`` or ``sample``.
        steps: that are timed at most, after one; at least one.
        seconds: after which no other step is begun.
    """
    jax.config.update("jax_platforms", "cpu")  # the device is PyTorch's alone; JAX draws random numbers
    from benchmarks import against_diffusers as pairs

    begun = time.perf_counter()
    case = pairs.case(size)
    theirs = Theirs.random(case, pairs.training_set(case))
    call = _call(theirs, program)
    made, took = time.perf_counter() - begun, []
    while len(took) < 1 + steps and (len(took) < 2 or time.perf_counter() - begun < seconds):
        start = time.perf_counter()
        finite = call(len(took))
        took.append(time.perf_counter() - start)
    step = statistics.median(took[1:])
    on_gpu = theirs.device == "cuda"
    return {
        "program": program,
        "size": size,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "versions": {package.__name__: package.__version__ for package in (torch, diffusers, peft)},
        "weights_s": round(made, 1),
        "first_s": round(took[0], 3),
        "step_s": round(step, 4),
        "steps_s": [round(each, 4) for each in took[1:]],
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2) if on_gpu else None,
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2) if on_gpu else None,
        "finite": bool(finite),
    }


def _call(theirs: Theirs, program: str) -> Any:
    """A call of a program, given its number; it says whether what it computed is finite."""
    from benchmarks import against_diffusers as pairs

    case = theirs.case
    if program == "finetune":
        theirs.transformer.enable_gradient_checkpointing()
        drawn = [theirs.drawn(pairs.draws(case, jax.random.key(number))) for number in range(2)]
        return lambda number: math.isfinite(theirs.finetune(drawn[number % 2]))
    text = (2, case.transformer.max_text_seq_length, case.transformer.text_embed_dim)
    rng = np.random.default_rng(3)
    shapes = ((1, *case.latents), (2, *case.latents), text)
    latents, *both = (theirs.tensor(rng.normal(size=shape).astype(np.float32)).to(theirs.dtype) for shape in shapes)
    return lambda number: theirs.sample(latents, number, *both).isfinite().all().item()


def main() -> None:
    """Prints the figures of one program as JSON."""
    parser = commands.parser(__doc__)
    parser.add_argument("--program", choices=("finetune", "sample"), default="finetune")
    parser.add_argument("--size", choices=("small", "full"), default="full")
    parser.add_argument("--steps", type=commands.positive, default=5, help="that are timed, after one")
    args = parser.parse_args()
    print(json.dumps(timed(args.size, args.program, args.steps)))


if __name__ == "__main__":
    commands.run(main)
