"""Recipes, cells and settings side by side: which runs a comparison has, and what their figures say.

A candidate is a recipe with overrides, trained as ``charlm train`` would train it, once per seed. Each run has a folder of
its own, and what a comparison knows of a run it reads there, so a comparison can be stopped and repeated at any moment.

What is held equal, so that a difference means something:

    characters   each recipe as it is: cells and settings of one recipe then read the same text equally often
    parameters   hidden widths are adapted until all candidates have as many parameters as the first
    time         lengths are planned so that all candidates train equally long, schedule included

Seconds are those of training: evaluations, samples and saves are left out.
"""
