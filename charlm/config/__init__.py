"""The recipe: the schema of a YAML file, its loading, overrides and validation. Knows nothing of torch, texts or the terminal.

A recipe that contains only ``corpus: FILE`` is complete. Every field has a sentence; the help, the JSON Schema for editors and
the error messages are made from it.

    values      strict base class, value types, bounds
    data, model, train, recipe    the sections and the recipe
    names       dotted names of the fields
    renames, suggestions    old keys, keys that a user probably meant
    overrides   ``KEY=VALUE``
    validation  plain values → recipe, all problems at once
    paths, loading    names and files → recipe
    changes     what may change when a run is resumed
    keys        list of the keys, JSON Schema
"""

from charlm.config.changes import reconcile
from charlm.config.data import DataSection, SplitFiles
from charlm.config.keys import json_schema, list_keys
from charlm.config.loading import LoadedRecipe, find_recipe, load_recipe, recipe_name
from charlm.config.model import ModelSection
from charlm.config.names import field_names, fields, value_at
from charlm.config.overrides import apply_overrides, check_key
from charlm.config.paths import is_path, path_of
from charlm.config.recipe import CheckpointSection, EvaluateSection, Recipe, ReportedSection, SampleSection
from charlm.config.renames import RENAMED, with_present_names
from charlm.config.train import TrainSection
from charlm.config.validation import validate_recipe
from charlm.config.values import FIXED, MAX_THREADS, Section, check_split, check_temperature, time_limit

__all__ = [
    "FIXED",
    "MAX_THREADS",
    "RENAMED",
    "CheckpointSection",
    "DataSection",
    "EvaluateSection",
    "LoadedRecipe",
    "ModelSection",
    "Recipe",
    "ReportedSection",
    "SampleSection",
    "Section",
    "SplitFiles",
    "TrainSection",
    "apply_overrides",
    "check_key",
    "check_split",
    "check_temperature",
    "field_names",
    "fields",
    "find_recipe",
    "is_path",
    "json_schema",
    "list_keys",
    "load_recipe",
    "path_of",
    "recipe_name",
    "reconcile",
    "time_limit",
    "validate_recipe",
    "value_at",
    "with_present_names",
]
