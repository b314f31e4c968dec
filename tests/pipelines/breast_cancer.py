"""Trains, compares and registers a classifier for scikit-learn's breast-cancer data set.

Compile with the kfp 2.17 SDK:  python breast_cancer.py  (writes breast_cancer.yaml beside this file).
"""
from pathlib import Path
from typing import List, NamedTuple

from kfp import compiler, dsl
from kfp.dsl import ClassificationMetrics, Dataset, Input, Metrics, Model, Output

SKLEARN = ["scikit-learn"]
IMAGE = "python:3.11"


@dsl.component(base_image=IMAGE, packages_to_install=SKLEARN)
def load_data(raw: Output[Dataset]) -> int:
    """Writes the data set as CSV and returns the number of rows."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    names = [name.replace(" ", "_") for name in data.feature_names] + ["target"]
    with open(raw.path, "w") as out:
        out.write(",".join(names) + "\n")
        for row, target in zip(data.data, data.target):
            out.write(",".join(repr(float(v)) for v in row) + f",{int(target)}\n")
    raw.metadata["rows"] = len(data.target)
    raw.metadata["features"] = len(data.feature_names)
    print(f"{len(data.target)} rows, {len(data.feature_names)} features")
    return len(data.target)


@dsl.component(base_image=IMAGE, packages_to_install=SKLEARN)
def split_data(raw: Input[Dataset], test_share: float, seed: int, train: Output[Dataset], test: Output[Dataset]):
    """Splits the rows into a training and a test set, keeping the share of the classes."""
    from sklearn.model_selection import train_test_split

    with open(raw.path) as lines:
        header, *rows = lines.read().splitlines()
    labels = [row.rsplit(",", 1)[1] for row in rows]
    parts = train_test_split(rows, test_size=test_share, random_state=seed, stratify=labels)
    for artifact, part in zip((train, test), parts):
        with open(artifact.path, "w") as out:
            out.write("\n".join([header, *part]) + "\n")
        artifact.metadata["rows"] = len(part)
        print(f"{artifact.name}: {len(part)} rows")


@dsl.component(base_image=IMAGE, packages_to_install=SKLEARN)
def train_candidate(train: Input[Dataset], algorithm: str, metrics: Output[Metrics], model: Output[Model]) -> float:
    """Trains one candidate and returns its cross-validated accuracy."""
    import pickle

    import numpy
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier

    table = numpy.loadtxt(train.path, delimiter=",", skiprows=1)
    candidates = {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        "forest": RandomForestClassifier(n_estimators=60, random_state=0),
        "tree": DecisionTreeClassifier(max_depth=4, random_state=0),
    }
    classifier = candidates[algorithm]
    accuracy = float(cross_val_score(classifier, table[:, :-1], table[:, -1], cv=5).mean())
    classifier.fit(table[:, :-1], table[:, -1])
    with open(model.path, "wb") as out:
        pickle.dump(classifier, out)
    model.metadata["algorithm"] = algorithm
    model.metadata["framework"] = "scikit-learn"
    metrics.log_metric("cross_validated_accuracy", accuracy)
    print(f"{algorithm}: {accuracy:.4f}")
    return accuracy


@dsl.component(base_image=IMAGE)
def choose_best(
    models: Input[List[Model]], accuracies: List[float], threshold: float, best: Output[Model]
) -> NamedTuple("Choice", [("accuracy", float), ("good_enough", str)]):
    """Exports the most accurate candidate."""
    import shutil

    accuracy, chosen = max(zip(accuracies, models), key=lambda pair: pair[0])
    algorithm = chosen.metadata["algorithm"]
    shutil.copyfile(chosen.path, best.path)
    best.metadata["algorithm"] = algorithm
    best.metadata["cross_validated_accuracy"] = accuracy
    print(f"best of {len(models)}: {algorithm} ({accuracy:.4f})")
    return accuracy, "yes" if accuracy >= threshold else "no"


@dsl.component(base_image=IMAGE, packages_to_install=SKLEARN)
def evaluate(
    test: Input[Dataset], model: Input[Model], metrics: Output[Metrics], curve: Output[ClassificationMetrics]
) -> float:
    """Scores the chosen candidate on rows that it has never seen."""
    import pickle

    import numpy
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, roc_auc_score, roc_curve

    with open(model.path, "rb") as source:
        classifier = pickle.load(source)
    table = numpy.loadtxt(test.path, delimiter=",", skiprows=1)
    features, truth = table[:, :-1], table[:, -1]
    scores = classifier.predict_proba(features)[:, 1]
    predicted = scores >= 0.5
    accuracy = float(accuracy_score(truth, predicted))
    metrics.log_metric("accuracy", accuracy)
    metrics.log_metric("f1", float(f1_score(truth, predicted)))
    metrics.log_metric("roc_auc", float(roc_auc_score(truth, scores)))
    curve.log_confusion_matrix(["malignant", "benign"], confusion_matrix(truth, predicted).tolist())
    points = [(float(f), float(t), min(float(h), 1.0)) for f, t, h in zip(*roc_curve(truth, scores))]
    curve.log_roc_curve(*map(list, zip(*points)))
    print(f"{model.metadata['algorithm']}: accuracy {accuracy:.4f} on {len(truth)} rows")
    return accuracy


@dsl.component(base_image=IMAGE)
def register_model(model: Input[Model], accuracy: float, card: Output[dsl.Markdown]) -> str:
    """Writes the model's card, the last step before serving."""
    import os

    size = os.path.getsize(model.path)
    with open(card.path, "w") as out:
        out.write(f"# breast-cancer-classifier\n\n- algorithm: {model.metadata['algorithm']}\n")
        out.write(f"- test accuracy: {accuracy:.4f}\n- size: {size} bytes\n- location: {model.uri}\n")
    return f"breast-cancer-classifier ({model.metadata['algorithm']})"


@dsl.component(base_image=IMAGE)
def reject_model(accuracy: float, threshold: float):
    """Says why nothing is registered."""
    print(f"no candidate is good enough: {accuracy:.4f} < {threshold}")


@dsl.component(base_image=IMAGE)
def report(status: dsl.PipelineTaskFinalStatus):
    """Runs at the end, whatever happened before."""
    print(f"training ended {status.state}: {status.pipeline_task_name}")


@dsl.pipeline(name="breast-cancer", description="Train, compare, evaluate and register a classifier.")
def breast_cancer(
    algorithms: List[str] = ["logistic", "forest", "tree"],
    test_share: float = 0.25,
    threshold: float = 0.9,
    seed: int = 7,
):
    done = report()
    with dsl.ExitHandler(done, name="train-and-register"):
        data = load_data()
        parts = split_data(raw=data.outputs["raw"], test_share=test_share, seed=seed)
        with dsl.ParallelFor(algorithms, name="candidates") as algorithm:
            candidate = train_candidate(train=parts.outputs["train"], algorithm=algorithm)
        choice = choose_best(
            models=dsl.Collected(candidate.outputs["model"]),
            accuracies=dsl.Collected(candidate.outputs["Output"]),
            threshold=threshold,
        )
        with dsl.If(choice.outputs["good_enough"] == "yes", name="good-enough"):
            score = evaluate(test=parts.outputs["test"], model=choice.outputs["best"])
            register_model(model=choice.outputs["best"], accuracy=score.outputs["Output"])
        with dsl.Else(name="not-good-enough"):
            reject_model(accuracy=choice.outputs["accuracy"], threshold=threshold)


if __name__ == "__main__":
    compiler.Compiler().compile(breast_cancer, str(Path(__file__).with_suffix(".yaml")))
