"""Networks whose convolutions are replaced by structured ones, and what it takes to train them under a teacher."""
