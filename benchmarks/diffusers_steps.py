"""The fine-tuning step and the sampling step as diffusers and peft do them: the other side of `against_diffusers`."""

import contextlib
import functools
from pathlib import Path
from typing import Any

import diffusers
import jax.numpy as jnp
import numpy as np
import torch

GUIDANCE, SAMPLING_STEPS = 6.0, 40


class Theirs:
    """The two programs.

    Args:
        folder: with ``published/transformer``, ``published/vae`` and ``lora.safetensors``.
        case: an `against_diffusers.Case`: networks and sizes.
        data: a `finetune.TrainingSet`.
    """

    name = "diffusers + peft"

    def __init__(self, folder: Path, case: Any, data: Any):
        self.case, self.device = case, "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = getattr(torch, case.transformer.param_dtype)
        networks = (diffusers.CogVideoXTransformer3DModel, diffusers.AutoencoderKLCogVideoX)
        self.transformer, self.vae = (
            network.from_pretrained(folder / "published" / part, torch_dtype=self.dtype)
            for network, part in zip(networks, ("transformer", "vae"), strict=True)
        )
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
        pipeline.load_lora_weights(folder / "lora.safetensors")
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

    def tensor(self, x: Any) -> torch.Tensor:
        """An array on the device; videos as theirs lie, [B, T, C, H, W]."""
        x = np.array(jnp.asarray(x).astype(jnp.float32) if x.dtype == jnp.bfloat16 else x)
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 2) if x.ndim == 5 else x)).to(self.device)

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
