"""The tables of a compression run, apart from the code that makes them: reading needs no torch."""

import pyarrow as pa

EPOCHS = pa.schema(
    [
        pa.field("epoch", pa.int16(), nullable=False),  # 0: pruned, not yet finetuned
        pa.field("step", pa.int32(), nullable=False),
        pa.field("perplexity", pa.float64(), nullable=False),
        pa.field("change_percent", pa.float64()),  # against the row before
        pa.field("validation_perplexity", pa.float64(), nullable=False),  # chooses the best
        pa.field("best", pa.bool_(), nullable=False),
        pa.field("training_loss", pa.float64()),  # nats a token, the epoch's mean over its steps
        pa.field("learning_rate", pa.float64(), nullable=False),  # of the epoch's last step
        pa.field("wall_s", pa.float64(), nullable=False),
        pa.field("memory_before_bytes", pa.int64(), nullable=False),
        pa.field("memory_consumed_bytes", pa.int64(), nullable=False),
        pa.field("memory_peak_bytes", pa.int64(), nullable=False),
        pa.field("memory_total_peak_bytes", pa.int64(), nullable=False),
    ]
)
LAYERS = pa.schema(
    [
        pa.field("layer", pa.int16(), nullable=False),
        pa.field("tensor", pa.string(), nullable=False),
        pa.field("n_weights", pa.int64(), nullable=False),
        pa.field("n_kept", pa.int64(), nullable=False),
        pa.field("density_asked", pa.float64(), nullable=False),
        pa.field("density", pa.float64(), nullable=False),
        pa.field("loss", pa.float64()),  # as `one_pass.Pruned` says, like wall_s
        pa.field("damping", pa.float64()),
        pa.field("wall_s", pa.float64(), nullable=False),
    ]
)
