"""The flags of fairseq-preprocess, -generate, -interactive and -score that the programs of those names do without."""

from .foreign import ABSENT, Table

_LOG = "redirect the output: python ... > FILE"
_TRAINING = "only train.py logs in such a way"

# What all programs of fairseq have.
_COMMON = Table(
    values=(
        "--fp16-init-scale --fp16-scale-window --fp16-scale-tolerance --min-loss-scale --threshold-loss-scale "
        "--amp-batch-retries --amp-init-scale --amp-scale-window --empty-cache-freq --all-gather-list-size "
        "--model-parallel-size --plasma-path --criterion --optimizer --lr-scheduler --simul-type --num-workers "
        "--workers"
    ).split(),
    switches=(
        "--fp16-no-flatten-grads --on-cpu-convert-precision --reset-logging --suppress-crashes --use-plasma-view"
    ).split(),
    certain={"--task": (("translation",), "translation is the only task; leave it out")},
    hints={
        "--user-dir": ABSENT,
        "--tpu": ABSENT,
        "--profile": ABSENT,
        "--quantization-config-path": ABSENT,
        "--log-file": _LOG,
        "--tensorboard-logdir": _TRAINING,
        "--wandb-project": _TRAINING,
        "--azureml-logging": _TRAINING,
        "--aim-repo": _TRAINING,
        "--aim-run-hash": _TRAINING,
    },
)

# Text is taken as it is.
_PREPROCESS = Table(
    values="--padding-factor --log-interval --log-format --seed --scoring".split(),
    switches=("--cpu --no-progress-bar --fp16 --bf16 --memory-efficient-fp16 --memory-efficient-bf16 --amp").split(),
    certain={
        "--tokenizer": (("space",), "text must be tokenized before, as with sacremoses -l LANG tokenize < TEXT > NEW"),
    },
    hints={
        "--bpe": "text must be cut into subwords before, as with subword-nmt apply-bpe -c CODES < TEXT > NEW",
        "--align-suffix": "--alignfile FILE has the alignments of the training pairs",
        "--dict-only": "the dictionaries come with the data, as dict.LANG.txt in --destdir",
    },
)

_SCORES = "tokenized BLEU and sacreBLEU are printed; for other scores give the lines H- and T- to the command sacrebleu"
_JOINED = "--remove-bpe joins subwords, also of sentencepiece: --remove-bpe sentencepiece"
_CUT = "cut the text into subwords before, as with spm_encode --model M | python interactive.py ..."
_ITERATIVE = "there are no models that refine translations; leave it out"
_MODEL = "the checkpoint says of what form the model is; leave it out"

# How fairseq reads data, and what its translation task and its training are told.
_READING = (
    "--required-batch-size-multiple --required-seq-len-multiple --dataset-impl --data-buffer-size --train-subset "
    "--valid-subset --validate-interval --validate-interval-updates --validate-after-updates --fixed-validation-seed "
    "--max-tokens-valid --max-sentences-valid --batch-size-valid --max-valid-steps --curriculum --heartbeat-timeout "
    "--update-ordered-indices-seed --num-batch-buckets --upsample-primary --checkpoint-shard-count --ddp-backend "
    "--distributed-world-size --distributed-rank --distributed-backend --distributed-init-method --distributed-port "
    "--bucket-cap-mb --eval-bleu-args --eval-bleu-detok --eval-bleu-detok-args --ema-decay --ema-start-update "
    "--softmax-batch --diverse-beam-strength --lm-weight --moses-source-lang --moses-target-lang"
).split()

# What all programs of fairseq that translate have.
_TRANSLATE = Table(
    values=_READING,
    switches=(
        "--raw-text --lazy-load --sacrebleu --combine-valid-subsets --ignore-unused-valid-subsets --disable-validation "
        "--distributed-no-spawn --grouped-shuffling --update-epoch-batch-itr --eval-bleu --eval-tokenized-bleu "
        "--eval-bleu-print-samples --no-seed-provided --find-unused-parameters --fast-stat-sync --broadcast-buffers"
    ).split(),
    certain={
        "--scoring": (("bleu", "sacrebleu"), _SCORES),
        "--print-alignment": (("", "hard"), "lines A- say where attention is greatest, as hard does"),
        "--left-pad-source": (("True", "true"), _MODEL),
        "--left-pad-target": (("False", "false"), _MODEL),
        "--model-overrides": (("{}",), _MODEL),
        "--no-repeat-ngram-size": (("0",), ABSENT),
        "--diverse-beam-groups": (("-1",), ABSENT),
        "--diversity-rate": (("-1", "-1.0"), ABSENT),
        "--checkpoint-suffix": (("",), "--path FILE has the whole name"),
        "--iter-decode-max-iter": (("10",), _ITERATIVE),
    },
    hints={
        "--truncate-source": "--skip-invalid-size-inputs-valid-test leaves out what is too long",
        "--print-step": "lines P- have the log-probability of every step",
        "--eos-token": "the end of a sentence is </s>",
        "--arch": _MODEL,
        **dict.fromkeys(
            (
                "--constraints --match-source-len --lm-path --retain-dropout --retain-dropout-modules "
                "--decoding-format --load-alignments --word-scorer --moses-no-dash-splits --moses-no-escape"
            ).split(),
            ABSENT,
        ),
        **dict.fromkeys(
            (
                "--iter-decode-eos-penalty --iter-decode-force-max-iter --iter-decode-with-beam "
                "--iter-decode-with-external-reranker --retain-iter-history"
            ).split(),
            _ITERATIVE,
        ),
    },
)

_GENERATE = Table(
    certain={
        "--tokenizer": (("space", "moses"), "sacreBLEU is that of detokenized text in any case; leave it out"),
    },
    hints={
        "--results-path": "redirect the output: python generate.py ... > DIR/generate-test.txt",
        **dict.fromkeys("--bpe --bpe-codes --sentencepiece-model".split(), _JOINED),
    },
)

# What interactive.py reads comes from elsewhere; it has the flags --tokenizer and --bpe-codes itself.
_INTERACTIVE = Table(
    values="--gen-subset --num-shards --shard-id".split(),
    certain={
        "--bpe": (
            ("subword_nmt",),
            f"{_CUT}; {_JOINED}",
        ),
    },
    hints={
        "--sentencepiece-model": f"{_CUT}; {_JOINED}",
        "--quiet": "python interactive.py ... | grep ^H | cut -f3 prints the translations alone",
        "--prefix-size": "there are no references to take beginnings from",
        "--score-reference": "there are no references; generate.py scores them",
        "--results-path": "redirect the output: python interactive.py ... > FILE",
    },
)

PREPROCESS = (_COMMON, _PREPROCESS)
GENERATE = (_COMMON, _TRANSLATE, _GENERATE)
INTERACTIVE = (_COMMON, _TRANSLATE, _INTERACTIVE)
SCORE = (Table(switches=["--sacrebleu"], hints={"--sentence-bleu": "BLEU is that of the corpus"}),)
