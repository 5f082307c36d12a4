"""Models: one readable file per family, shared layers, and the registry that builds them."""

from vitdeploy.models.registry import FAMILIES, create_model, family_class, model_from_spec, register_family

__all__ = ["FAMILIES", "create_model", "family_class", "model_from_spec", "register_family"]
