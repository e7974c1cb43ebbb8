"""The networks: the cells' equations, the engines that execute them, and the language model."""
