"""charlm: train character-level recurrent language models, measure their perplexity exactly, sample from them.

Text flows one way: data → model → training → checkpoint → evaluation and sampling. The command line (``charlm.cli``) is
a thin skin over these stages; everything it does can be done from Python by importing the stage in question.
"""

__version__ = "0.1.0"
