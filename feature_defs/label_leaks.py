"""Does a service read a label? A feature that is made of the label's own column tells the model its answer.

    feature -> columns it names -> features beside it, features of the group that its group is made from, and theirs

A transform and a source made by SQL are not looked into: their columns are what they are called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from feature_defs import cleaning, expressions
from feature_defs.errors import UsageError
from feature_defs.model import GROUP_FORMAT, Aggregate, Definitions, Feature, FeatureGroup, Service, Source


def refuse_label_leaks(service: Service, definitions: Definitions, labels: Sequence[str]) -> None:
    """UsageError when a feature of the service reads a column that has a label's name, in whatever case."""
    wanted = {label.lower(): label for label in labels}
    for group, features in definitions.features_of(service):
        for feature in features:
            for owner, column in columns_read(group, feature, definitions):
                if column.lower() in wanted:
                    problem = f"feature '{group.name}.{feature.name}' reads {owner}'s column '{column}', and --label "
                    problem += f"'{wanted[column.lower()]}' says that it is the label: the model would see its answer"
                    hint = "leave the feature out of the service; if it is another column, rename the spine's"
                    raise UsageError(f"Service '{service.name}'", problem, hint=hint)


def columns_read(group: FeatureGroup, feature: Feature, definitions: Definitions) -> Iterator[tuple[str, str]]:
    """(source 'x', column) for each column that the feature is made of, also by way of other features."""
    waiting, seen = [(group, feature)], {(group.name, feature.name)}
    while waiting:
        group, feature = waiting.pop()
        source = definitions.source_of(group)
        others = {other.name.lower(): other for other in group.features}
        for column in named_columns(feature):
            beside = others.get(column.lower(), feature)
            inner = [(group, beside)] if isinstance(feature.expression, str) and beside is not feature else []
            if not inner or _may_have(source, column, group):  # where both are there, Spark takes the source's column
                made = source.format == GROUP_FORMAT
                yield f"{'group' if made else 'source'} '{source.name}'", column
                parent = definitions.groups[source.name] if made else None
                inner += [(parent, f) for f in parent.features if f.name.lower() == column.lower()] if parent else []
            for owner, part in inner:
                if (owner.name, part.name) not in seen:
                    seen.add((owner.name, part.name))
                    waiting.append((owner, part))


def _may_have(source: Source, column: str, group: FeatureGroup) -> bool:
    """Whether an expression can mean a column of the source: behind aggregates there is none."""
    known = source.schema is None or column.lower() in {name.lower() for name in source.schema}
    return known and not group.aggregates


def named_columns(feature: Feature) -> tuple[str, ...]:
    """The columns that a feature's own expression names."""
    match feature.expression:
        case None:
            return (feature.name,)
        case str() as text:
            return expressions.columns(text)
        case Aggregate() as aggregate:
            where = expressions.columns(aggregate.where) if aggregate.where else ()
            texts = [text for text in (aggregate.column, aggregate.by) if text]
            return (*(column for text in texts for column in expressions.columns(text)), *where)
        case cleaning.Standardise() | cleaning.MinMax() | cleaning.Log() | cleaning.Bucket() as scaled:
            return (scaled.column,)
        case cleaning.OneHot() | cleaning.Index() as scaled:
            return (scaled.column,)
