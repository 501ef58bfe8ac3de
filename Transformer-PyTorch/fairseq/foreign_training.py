"""The flags of fairseq-train that train.py does without."""

from .foreign import ABSENT, Table

# Accepted in silence, with a value: how data are read and messages passed, the start of loss scaling.
_VALUES = (
    "--num-workers --workers --ddp-backend --bucket-cap-mb --required-batch-size-multiple --required-seq-len-multiple "
    "--dataset-impl --data-buffer-size --all-gather-list-size --empty-cache-freq --heartbeat-timeout "
    "--num-batch-buckets --fixed-validation-seed --fp16-init-scale --fp16-scale-window --fp16-scale-tolerance "
    "--min-loss-scale --threshold-loss-scale --left-pad-source --left-pad-target"
).split()

# Accepted in silence: they ask for what is so in any case.
_SWITCHES = (
    "--encoder-normalize-before --decoder-normalize-before --encoder-learned-pos --decoder-learned-pos "
    "--no-scale-embedding --find-unused-parameters --fast-stat-sync --fix-batches-to-gpus --broadcast-buffers "
    "--distributed-no-spawn --fp16-no-flatten-grads --report-accuracy --use-old-adam "
    "--channels-last --no-channels-last"  # there are no images
).split()

# Accepted with a warning.
_NOTES = {
    "--tensorboard-logdir": "the TensorBoard events go to --save-dir",
    "--max-tokens-valid": "batches of validation have --max-tokens, too",
}

_ONE_SIZE = "encoder and decoder have one"
_TORCHRUN = "start the processes with torchrun --nproc-per-node N train.py ..."

# Refused, with what to do instead.
_HINTS = {
    "--encoder-embed-dim": f"{_ONE_SIZE} width: --hidden-size N",
    "--decoder-embed-dim": f"{_ONE_SIZE} width: --hidden-size N",
    "--encoder-ffn-embed-dim": f"{_ONE_SIZE} inner width: --filter-size N",
    "--decoder-ffn-embed-dim": f"{_ONE_SIZE} inner width: --filter-size N",
    "--encoder-attention-heads": f"{_ONE_SIZE} number of heads: --num-heads N",
    "--decoder-attention-heads": f"{_ONE_SIZE} number of heads: --num-heads N",
    "--no-token-positional-embeddings": "--position nopos",
    "--use-factorized-embedding": "--rank-scale R factorizes the embeddings, too",
    "--validate-interval-updates": "validation comes with the ends of epochs; --sample-without-replacement N makes "
    "epochs of N batches",
    "--validate-after-updates": "--validate-interval N validates every N epochs",
    "--disable-validation": "--validate-interval N with a large N validates at the end alone",
    "--keep-best-checkpoints": "checkpoint_best.pt is kept, and --keep-last-epochs N keeps others",
    "--no-last-checkpoints": "a run goes on from its last checkpoint, so it is always kept; --no-save keeps none",
    "--no-save-optimizer-state": "a run goes on from its last checkpoint, which needs that state",
    "--optimizer-overrides": "the flags say how to go on; --reset-optimizer begins with the weights alone",
    "--checkpoint-suffix": "give another --save-dir",
    "--stop-time-hours": "stop it from outside, as with timeout 8h python train.py ...; the same command goes on",
    "--warmup-ratio": "--warmup-updates N",
    "--lr-patience": "reduce_lr_on_plateau lowers the rate after every epoch without progress",
    "--lr-threshold": "reduce_lr_on_plateau lowers the rate after every epoch without progress",
    "--lr-period-updates": "cosine is a single half wave, over --max-update updates",
    "--t-mult": "cosine is a single half wave, over --max-update updates",
    "--eval-bleu-detok-args": "detokenization is that of Moses, in the target language",
    "--bpe": "--eval-bleu-remove-bpe joins subwords before BLEU is computed",
    "--scoring": "--eval-bleu computes BLEU in validation, generate.py of a test set",
    "--log-file": "redirect the output: python train.py ... > FILE",
    "--wandb-project": "the TensorBoard events are in --save-dir",
    "--azureml-logging": "the TensorBoard events are in --save-dir",
    "--user-dir": ABSENT,
    "--truncate-source": "sentences that are too long are left out of training",
    "--max-lr": "--lr LR",
    "--nprocs-per-node": _TORCHRUN,
    "--local-rank": _TORCHRUN,
    "--local_rank": _TORCHRUN,
}
_HINTS |= dict.fromkeys((f"--distributed-{name}" for name in ("rank", "backend", "init-method", "port")), _TORCHRUN)
_HINTS |= dict.fromkeys(
    (
        "--encoder-embed-path --decoder-embed-path --encoder-layerdrop --decoder-layerdrop --encoder-layers-to-keep "
        "--decoder-layers-to-keep --decoder-input-dim --decoder-output-dim --adaptive-input --adaptive-softmax-cutoff "
        "--adaptive-softmax-dropout --adaptive-softmax-factor --tie-adaptive-weights --tie-adaptive-proj "
        "--layernorm-embedding --no-cross-attention --cross-self-attention --checkpoint-activations "
        "--offload-activations --min-params-to-wrap --quant-noise-pq --quant-noise-pq-block-size --quant-noise-scalar "
        "--base-layers --base-sublayers --base-shuffle --char-inputs --no-decoder-final-norm --merge-src-tgt-embed "
        "--load-alignments --upsample-primary --ignore-prefix-size --use-bmuf --fp16-adam-stats --tpu --profile "
        "--model-parallel-size --quantization-config-path --zero-sharding --slowmo-momentum --slowmo-algorithm "
        "--localsgd-frequency --distributed-wrapper --pipeline-model-parallel --pipeline-balance --pipeline-devices "
        "--pipeline-chunks --write-checkpoints-asynchronously --load-checkpoint-on-all-dp-ranks"
    ).split(),
    ABSENT,
)

TRAIN = Table(_VALUES, _SWITCHES, _NOTES, hints=_HINTS)
