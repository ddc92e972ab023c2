"""LoRA files that cannot be used: refused with everything that is wrong with them."""

import numpy as np
import pytest

from converters import lora as command
from reangle_jax.backbones.cogvideox import lora
from reangle_jax.data import safetensors
from reangle_jax.errors import InputError
from tests.backbones.lora_files import ALPHA, CONFIG, PREFIX, RANK, WIDTH, published, write


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "a.safetensors", published(), r=RANK, lora_alpha=ALPHA)


FOREIGN = {
    "LoHa": "lora_unet_transformer_blocks_0_attn1_to_q.hada_w1_a",
    "LoKr": "transformer_blocks.0.attn1.to_q.lokr_w1",
    "DoRA": "transformer.transformer_blocks.0.attn1.to_q.lora_magnitude_vector",
    "OFT": "transformer_blocks.0.attn1.to_q.oft_blocks",
    "SAT": "model.diffusion_model.transformer.layers.0.attention.query_key_value.matrix_A.0",
    "a text encoder's LoRA": "text_encoder.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight",
    "FLUX": "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
    "Wan": "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
    "a UNet's LoRA": "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
}


class TestRefusals:
    def refused(self, path, *words):
        with pytest.raises(InputError) as caught:
            lora.read(path, CONFIG)
        for word in words:
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize("layout", FOREIGN)
    def test_layouts_that_are_none(self, tmp_path, layout):
        """Beside thousands of tensors that would fit."""
        arrays = {FOREIGN[layout]: np.zeros((RANK, WIDTH), np.float32)}
        arrays |= {f"{FOREIGN[layout]}.{k}": np.zeros(1, np.float32) for k in range(2000)}
        path = write(tmp_path / "a.safetensors", published() | arrays)
        self.refused(
            path, f"its layout is of {layout} ({FOREIGN[layout]}), which cannot be used: only adapters of to_q"
        )

    def test_other_weights(self, tmp_path):
        names = ("blocks.0.foo.lora_A.weight", "patch_embed.proj.weight")
        for name, words in zip(names, ("its layout is not known here", "holds no LoRA but other weights"), strict=True):
            arrays = {name: np.zeros((RANK, WIDTH), np.float32)}
            self.refused(write(tmp_path / "a.safetensors", arrays), f"{words} ({name})")
        self.refused(
            write(tmp_path / "a.safetensors", {f"{PREFIX}0.attn1.to_q.alpha": np.ones(1)}), "it has no adapters"
        )

    def test_two_adapters_in_one_file(self, tmp_path):
        other = {name.replace(".weight", ".other.weight"): array for name, array in published(1).items()}
        self.refused(write(tmp_path / "a.safetensors", published() | other), "is the same as")

    def test_all_faults_at_once(self, tmp_path):
        arrays = published()
        del arrays[f"{PREFIX}0.attn1.to_q.lora_B.weight"]
        arrays[f"{PREFIX}1.attn1.to_k.lora_A.weight"] = np.zeros((RANK + 1, WIDTH), np.float32)
        arrays[f"{PREFIX}1.attn1.to_v.lora_B.weight"] = np.zeros((WIDTH + 2, RANK), np.float32)
        arrays[f"{PREFIX}0.ff.net.2.lora_A.weight"] = np.zeros((RANK, WIDTH), np.float32)
        arrays[f"{PREFIX}2.attn1.to_v.lora_A.weight"] = np.zeros((RANK, WIDTH), np.float32)
        path = write(tmp_path / "bad.safetensors", arrays, r=RANK, lora_alpha=ALPHA, use_dora=True)
        self.refused(
            path,
            "transformer_blocks.0.attn1.to_q: lora_B missing",
            f"1.attn1.to_k.lora_A.weight: shape [4, {WIDTH}], expected [3, {WIDTH}]",
            f"1.attn1.to_v.lora_B.weight: shape [{WIDTH + 2}, 3], expected [{WIDTH}, 3]",
            "1 tensors adapt ff.net.2; only to_q, to_k, to_v, to_out.0 can be",
            "2.attn1.to_v.lora_A.weight: the transformer has 2 layers",
            "use_dora is set",
        )

    def test_many_faults_are_counted(self, tmp_path):
        arrays = {name: array[:, :-1] for name, array in published().items()}
        self.refused(write(tmp_path / "a.safetensors", arrays), "; and 10 more: give one that was trained")

    def test_stated_rank_is_not_the_tensors(self, tmp_path):
        self.refused(write(tmp_path / "b.safetensors", published(), r=8, lora_alpha=8.0), "expected [8, 32]")

    def test_a_layer_left_out(self, tmp_path):
        path = write(tmp_path / "b.safetensors", published(layers=1), r=RANK, lora_alpha=ALPHA)
        self.refused(path, "transformer_blocks.1.attn1.to_q: lora_A and lora_B missing")

    def test_targets_left_out_are_zero(self, tmp_path):
        path = write(tmp_path / "b.safetensors", published(targets=["to_q", "to_v"]), r=RANK, lora_alpha=ALPHA)
        arrays = lora.read(path, CONFIG).arrays
        assert not arrays["blocks.layers.attn.to_k.lora_b"].any()
        assert arrays["blocks.layers.attn.to_q.lora_b"].all()

    def test_no_lora(self, tmp_path, file):
        self.refused(write(tmp_path / "b.safetensors", {}), "it holds no tensors")
        (tmp_path / "c.safetensors").write_bytes(file.read_bytes()[:-9])
        self.refused(tmp_path / "c.safetensors", "is truncated")
        (tmp_path / "c.safetensors").write_bytes(b"\xff" * 64)
        self.refused(tmp_path / "c.safetensors", "is no safetensors file")
        self.refused(tmp_path / "none", "none; give a LoRA's .safetensors file")
        self.refused(
            tmp_path, "holds no lora.safetensors or pytorch_lora_weights.safetensors or adapter_model.safetensors"
        )
        arrays = {"lora_adapter_metadata": "{"}
        (tmp_path / "d.safetensors").write_bytes(safetensors.to_bytes(published(), arrays))
        self.refused(tmp_path / "d.safetensors", "lora_adapter_metadata cannot be read")

    def test_commands(self, tmp_path, file):
        with pytest.raises(
            InputError, match=r"a LoRA of 2 layers, width 32, fits no transformer .* give --transformer"
        ):
            command.import_command(["--source", str(file), "--out", str(tmp_path / "l")])
        assert not (tmp_path / "l").exists()
        (tmp_path / "full").mkdir()
        (tmp_path / "full/x").touch()
        with pytest.raises(InputError, match=r"--out: .*full exists"):
            command.import_command(["--source", str(file), "--out", str(tmp_path / "full")])
        with pytest.raises(InputError, match=r"does not end in \.safetensors"):
            command.export_command(["--source", str(file), "--out", str(tmp_path / "x.bin")])
