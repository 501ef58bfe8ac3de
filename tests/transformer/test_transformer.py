"""The Transformer against the golden tables and counts."""

import pytest
import torch
import torch.nn.functional as F
from fairseq.config import TransformerConfig, architecture
from fairseq.transformer import build_model, decayed_modules

from factorized import FactorizedEmbedding, FactorizedLinear, factorized_modules, frobgrad
from factorized import parameter_count as count
from tests.transformer.golden import DECODER_INPUT, SOURCES, TARGET, filled, golden_model

# rank scale, source, cross mask: sum of logits, of their squares, loss, nll, last 3 logits of row 2, position 3
GOLDEN = [
    (0.0, "A", True, -16.52830696, 46.91328420, 20.07695021, 20.29326791, (-0.52836087, 0.34906131, -0.02116954)),
    (0.0, "B", True, -16.77502250, 46.75284869, 21.43127988, 21.79473579, (-1.02671934, 0.51514934, 0.54522934)),
    (0.0, "B", False, -15.16853144, 49.21284049, 20.75376717, 21.03709712, (-0.30740207, 0.31455430, 0.45083823)),
    (0.5, "A", True, -5.89250107, 47.94913032, 20.70743265, 20.99996621, (0.08623363, -0.14443812, -1.02426453)),
    (0.5, "B", True, -5.54125400, 49.48665583, 20.98257461, 21.30998509, (-0.26242640, -0.21983472, -0.88025030)),
    (0.5, "B", False, -4.34211952, 50.01453539, 20.60721916, 20.88670557, (0.60184146, 0.22412448, -1.03101500)),
]


def test_filling_by_hand():
    assert filled(0, 3, 2)[0, 0] == (7919 + 104729) % 1009 / 1009 - 0.5
    assert filled(2, 3, 2)[1, 1] == (4 * 7919 + 3 * 104729) % 1009 / 1009 - 0.5


@pytest.mark.parametrize("rank_scale, source, cross_mask, total, squares, loss, nll, last", GOLDEN)
def test_golden_logits(rank_scale, source, cross_mask, total, squares, loss, nll, last):
    model = golden_model(rank_scale, cross_mask=cross_mask)
    logits = model(SOURCES[source], DECODER_INPUT)
    assert logits.sum().item() == pytest.approx(total, abs=1e-8)
    assert logits.square().sum().item() == pytest.approx(squares, abs=1e-8)
    assert logits[1, 2, -3:].tolist() == pytest.approx(last, abs=1e-8)
    keep = TARGET.ne(1)
    log_p, target = logits[keep].log_softmax(1), TARGET[keep]
    assert F.nll_loss(log_p, target, reduction="sum").item() == pytest.approx(nll, abs=1e-8)
    smoothed = F.cross_entropy(logits[keep], target, reduction="sum", label_smoothing=0.1)
    assert smoothed.item() == pytest.approx(loss, abs=1e-8)
    for kept in (keep, keep.flatten().nonzero().squeeze(1)):
        torch.testing.assert_close(model(SOURCES[source], DECODER_INPUT, kept), logits[keep])


def test_golden_first_logits_and_parameters():
    dense, factorized = golden_model(), golden_model(0.5)
    first = [-1.39690835, 0.01350381, -0.14674132, -0.12594574]
    assert dense(SOURCES["A"], DECODER_INPUT)[0, 0, :4].tolist() == pytest.approx(first, abs=1e-8)
    first = [-0.17253462, -0.44750448, -0.51470570, 0.70136435]
    assert factorized(SOURCES["A"], DECODER_INPUT)[0, 0, :4].tolist() == pytest.approx(first, abs=1e-8)
    assert count(dense) == 17_906 and count(factorized) == 9_302


# rank scale, form, for each head of the encoder: |U|^2, |VT|^2 before and either after, |product|_F, |dU|, |dVT| before
FORMS = [
    (0.0, "query_key", (2.7309064799, 2.7429566017), (2.6464888354, 2.7156797937), (2.6382287163, 2.6135817517),
     (1.5194279448, 1.5291638245), (1.5175461498, 1.5300061984), (1.5084812272, 1.6019364521)),
    (0.0, "output_value", (2.8185773038, 2.4364073193), (2.5322150202, 2.6129571223), (2.5417149313, 2.4833564349),
     (1.4761194290, 1.4263367219), (1.5546962966, 1.4452044724), (1.4942443131, 1.3731682194)),
    (0.5, "query_key", (1.5081609420, 1.2227455379), (1.4982049562, 1.1482838792), (1.4919238973, 1.1580572722),
     (1.0549690241, 0.8197839957), (0.9134867697, 0.6183124003), (0.9157743455, 0.6467038809)),
    (0.5, "output_value", (1.3126774785, 1.3628208365), (1.2433902607, 1.2888247595), (1.2763689341, 1.2930716391),
     (0.9410048995, 0.9192598354), (0.7914449694, 0.7573116087), (0.8288279103, 0.7544270878)),
]  # fmt: skip


def norms(matrices: torch.Tensor) -> torch.Tensor:
    return torch.linalg.matrix_norm(matrices.detach())


@pytest.mark.parametrize("rank_scale, form, U2, VT2, after, product, dU, dVT", FORMS)
def test_golden_norms_of_heads(rank_scale, form, U2, VT2, after, product, dU, dVT):
    model = golden_model(rank_scale)
    products = getattr(model.encoder.layers[0].self_attention, form)
    U, VT = products.factors()
    assert norms(U).square().tolist() == pytest.approx(U2, abs=1e-9)
    assert norms(VT).square().tolist() == pytest.approx(VT2, abs=1e-9)
    assert norms(U @ VT).tolist() == pytest.approx(product, abs=1e-9)
    for gradient, expected in zip(frobgrad((U, VT)), (dU, dVT)):
        assert norms(gradient).tolist() == pytest.approx(expected, abs=1e-9)
    logits = model(SOURCES["A"], DECODER_INPUT)
    products.spectral_init()
    for factor in products.factors():
        assert norms(factor).square().tolist() == pytest.approx(after, abs=1e-9)
    torch.testing.assert_close(model(SOURCES["A"], DECODER_INPUT), logits, rtol=0, atol=1e-13)


@pytest.mark.parametrize("rank_scale", [0.0, 0.5])
@pytest.mark.parametrize("position", ["learned", "timing", "nopos"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_variant_trains(rank_scale, position, tied):
    """Every parameter gets a finite gradient; padding rows get none from the source or the target."""
    config = TransformerConfig(8, 12, 1, 2, position=position, share_input_output_embed=tied, rank_scale=rank_scale)
    model = build_model(config, 11, 10)
    model(SOURCES["B"], DECODER_INPUT, TARGET.ne(1)).logsumexp(1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name
    for embedder in (model.encoder.embedder, model.decoder.embedder):
        tables = [embedder.tokens, embedder.positions] if position == "learned" else [embedder.tokens]
        for table in tables:
            tied_here = tied and table is model.decoder.embedder.tokens
            rows = table.U if rank_scale else table.weight
            assert (rows.grad[1].count_nonzero() == 0) is not tied_here


def test_tied_output_shares_the_factors():
    """One table changes both ends."""
    config = TransformerConfig(8, 12, 1, 2, share_input_output_embed=True, rank_scale=0.5)
    model = build_model(config, 11, 10).eval()
    x = torch.randn(3, 8)
    table = model.decoder.embedder.tokens
    expected = model.decoder.norm(x) @ table.weight.T + model.decoder.output_bias
    torch.testing.assert_close(model.decoder.logits(x), expected)
    assert "decoder.embedder.tokens" in decayed_modules(model)["linear"]


def test_the_start_of_dense_parameters():
    """Normal embeddings (padding included), uniform matrices, norms at the identity."""
    model = build_model(architecture("transformer_small"), 2000, 3000)
    for name, parameter in model.named_parameters():
        if "embedder" in name:
            assert parameter.std().item() == pytest.approx(0.1, rel=0.02) and parameter[1].abs().min() > 0
        elif name.endswith("gamma"):
            assert torch.equal(parameter, torch.ones(256))
        elif name.endswith("beta"):
            assert torch.equal(parameter, torch.zeros(256))
        else:
            assert 0.095 < parameter.abs().max() <= 0.1
            assert parameter.std().item() == pytest.approx(0.2 / 12**0.5, rel=0.03)


@pytest.mark.parametrize("spectral", [False, True])
def test_the_start_of_factors(spectral):
    """Factors of the dense start, or drawn like it."""
    options = {"rank_scale": 0.25, "num_layers": 1}
    model = build_model(architecture("transformer_small", spectral=spectral, **options), 300, 400)
    layers = [module for module in model.modules() if isinstance(module, (FactorizedLinear, FactorizedEmbedding))]
    assert len(layers) == 9
    for layer in layers:
        for factor in layer.factors():
            if spectral:
                gram = factor.T @ factor if factor is layer.U else factor @ factor.T
                assert (gram - gram.diagonal().diag()).abs().max() < 1e-4 * gram.max()
            elif isinstance(layer, FactorizedEmbedding):
                assert factor.std().item() == pytest.approx(0.1, rel=0.05)
            else:
                assert 0.09 < factor.abs().max() <= 0.1
    if spectral:  # of nearly full rank, their products show what they are factors of
        options["rank_scale"] = 0.999
        model = build_model(architecture("transformer_small", spectral=True, **options), 300, 400)
        assert model.encoder.embedder.tokens.weight.std().item() == pytest.approx(0.1, rel=0.02)
        assert 0.099 < model.decoder.output.weight.abs().max() < 0.1001


@pytest.mark.parametrize("rank_scale", [0.0, 0.5])
def test_spectral_attention_changes_the_factors_alone(rank_scale):
    plain, balanced = (
        (torch.manual_seed(3), build_model(TransformerConfig(
            16, 24, 2, 2, rank_scale=rank_scale, spectral_quekey=flag, spectral_outval=flag), 11, 10).eval())[1]
        for flag in (False, True)
    )  # fmt: skip
    logits = plain(SOURCES["B"], DECODER_INPUT)
    torch.testing.assert_close(balanced(SOURCES["B"], DECODER_INPUT), logits, rtol=1e-4, atol=1e-5)
    names = [*decayed_modules(balanced)["quekey"], *decayed_modules(balanced)["outval"]]
    assert len(names) == 12
    for name in names:
        U, VT = balanced.get_submodule(name).factors()
        torch.testing.assert_close(norms(U), norms(VT))
        before, _ = plain.get_submodule(name).factors()
        assert not torch.allclose(norms(before), norms(U), rtol=1e-3)


def test_one_form_alone():
    torch.manual_seed(0)
    model = build_model(TransformerConfig(16, 24, 1, 2, spectral_quekey=True), 11, 10)
    attention = model.encoder.layers[0].self_attention
    assert torch.allclose(*map(norms, attention.query_key.factors()), rtol=1e-5)
    assert not torch.allclose(*map(norms, attention.output_value.factors()), rtol=1e-3)


def test_heads_change_the_function():
    """In the code of 2021 their number had no effect."""
    two, four = golden_model().eval(), build_model(TransformerConfig(8, 12, 1, 4), 11, 10).double().eval()
    four.load_state_dict(two.state_dict())
    logits = [model(SOURCES["A"], DECODER_INPUT) for model in (two, four)]
    assert (logits[0] - logits[1]).abs().max() > 0.01


def test_smallest_ranks():
    """At least 1, where the scale rounds to none."""
    model = build_model(TransformerConfig(8, 12, 1, 2, rank_scale=0.01), 11, 10)
    assert {module.rank for module in factorized_modules(model).values()} == {1}
    assert model(SOURCES["A"], DECODER_INPUT).isfinite().all()


def test_longest_sentences():
    """1022 tokens with learned positions: of 1024 rows, one is unused and one that of padding."""
    config = TransformerConfig(8, 12, 1, 2)
    assert config.max_source_length == config.max_target_length == 1022
    model = build_model(config, 11, 10).eval()
    longest = torch.full((1, 1022), 4)
    assert model(longest, longest).shape == (1, 1022, 10)
    with pytest.raises(ValueError, match="source sentence of 1023 tokens is longer than the 1022"):
        model(torch.full((1, 1023), 4), longest)
    with pytest.raises(ValueError, match="target sentence of 1023"):
        model(longest, torch.full((1, 1023), 4))
    config = TransformerConfig(8, 12, 1, 2, position="timing")
    assert (config.max_source_length, config.max_target_length) == (1024, 100_000)


def test_sixteen_bit_autocast():
    model = build_model(TransformerConfig(16, 24, 1, 2, rank_scale=0.5, spectral=True), 11, 10).eval()
    expected = model(SOURCES["B"], DECODER_INPUT)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(SOURCES["B"], DECODER_INPUT)
        packed = model(SOURCES["B"], DECODER_INPUT, TARGET.ne(1))
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(packed.float(), expected[TARGET.ne(1)], rtol=0.05, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend):
    """In one piece, gradients included, for batches of several sizes."""
    model = build_model(TransformerConfig(16, 24, 1, 2, dropout=0, relu_dropout=0, rank_scale=0.5), 11, 10)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for repeats in (1, 2, 3):
        source, decoder_input, target = (x.repeat(repeats, 1) for x in (SOURCES["B"], DECODER_INPUT, TARGET))
        rows = target.ne(1).flatten().nonzero().squeeze(1)
        expected, found = (f(source, decoder_input, rows) for f in (model, compiled))
        torch.testing.assert_close(found, expected)
        model.zero_grad()
        expected.square().sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        model.zero_grad()
        found.square().sum().backward()
        for parameter, gradient in zip(model.parameters(), gradients):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)
