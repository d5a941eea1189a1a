"""Bad input to all that studies are made of: what is typed, settings, spaces, addresses, and what lies in folders.

A case is a line of a table: what is typed or what a file holds, and what is told. Each is refused in one line, with
exit code 2, and leaves everything as it was (`refused`). The cases in which something had been written before are
apart.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import FAST, KEYS, done, run, tiny
from tests.faults.test_bad_input import edit, refused, truncated

Change = Callable[[], object]

QUICK = ("--trials", "2", "--confirm", "0", "--final-seeds", "2", "--device", "cpu", "-q")
FOLDER = Path("studies/pilot")


def searching(name: str, *words: str) -> tuple[str, ...]:
    return ("search", "cells.h5ad", *KEYS, *FAST, *QUICK, "--test-batch", "c", "--name", name, "--no-track", *words)


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells, a model and the finished study `pilot`, not to be changed."""
    folder = tmp_path_factory.mktemp("studied")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny().write_h5ad("cells.h5ad")
        done("train", "cells.h5ad", *KEYS, *FAST, "-o", "model", "-q")
        done(*searching("pilot"))
    return folder


@pytest.fixture(autouse=True)
def place(studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of them as the working directory."""
    monkeypatch.chdir(shutil.copytree(studied, tmp_path / "here"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_DEFAULT_ARTIFACT_ROOT"):
        monkeypatch.delenv(name, raising=False)


# --- search: what is typed

SEARCH = {
    "empty name": ("--name ''", "name '' is no name for a folder"),
    "parent as a name": ("--name ../evil", "name '../evil' is no name for a folder: use letters, digits, spaces"),
    "parent within a name": ("--name a/../b", "name 'a/../b' is no name for a folder"),
    "absolute name": ("--name /tmp/x", "name '/tmp/x' is no name for a folder"),
    "empty part of a name": ("--name a//b", "name 'a//b' is no name for a folder"),
    "hidden name": ("--name .hidden", "name '.hidden' is no name for a folder"),
    "backslash": (r"--name 'a\b'", r"name 'a\\b' is no name for a folder"),
    "space at the end": ("--name 'pilot '", "name 'pilot ' is no name for a folder"),
    "name too long": (f"--name {'n' * 300}", "._+-, at most 200"),
    "MLflow's name": ("--name mlartifacts/x", "name 'mlartifacts/x' is no name for a folder"),
    "name in a study": ("--name pilot/again", "name 'pilot/again' is taken by other studies (pilot): choose another"),
    "several methods in a study": ("--name pilot --method all", "name 'pilot/nn' is taken by other studies (pilot)"),
    "repeats in a study": ("--name pilot --search-repeats 2", "name 'pilot/repeat1' is taken by other studies"),
    "no trials": ("--trials 0", "trials is 0: give at least 1"),
    "trials in words": ("--trials many", "'--trials': Input should be a valid integer, unable to parse string as an"),
    "trials in words, the value": ("--trials many", "not 'many'"),
    "half a trial": ("--trials 1.5", "not '1.5'"),
    "time that is over": ("--timeout -1", "timeout is -1.0: give at least 0"),
    "time that is no number": ("--timeout nan", "timeout is nan: give at least 0"),
    "endless time": ("--timeout inf", "timeout is inf: give at least 0"),
    "negative seed": ("--seed -1", "seed is -1: give at least 0"),
    "seed too large": ("--seed 4294967296", "seed is 4294967296: give at most 4294967295"),
    "no seeds per fold": ("--fold-seeds 0", "fold_seeds is 0: give at least 1"),
    "one fold": ("--max-folds 1", "max_folds is 1: give at least 2"),
    "negative pack": ("--pack -1", "pack is -1: give at least 0"),
    "negative confirmation": ("--confirm -1", "confirm is -1: give at least 0"),
    "no final seeds": ("--final-seeds 0", "final_seeds is 0: give at least 1"),
    "no repeats": ("--search-repeats 0", "repeats is 0: give at least 1"),
    "several faults": ("--trials 0 --set hidden=0", "trials is 0: give at least 1; hidden is 0: give a value of at"),
    "method": ("--method svm", "'svm' is not one of 'nn', 'dann', 'scdgn', 'all'"),
    "metric": ("--metric auc", "'auc' is not one of 'macro_f1', 'accuracy', 'balanced_accuracy'"),
    "engine": ("--engine dask", "'dask' is not one of 'local', 'ray'"),
    "device": ("--device gpu", "device 'gpu' is unknown: choose auto, cpu, cuda or cuda:N"),
    "sampler": ("--sampler TPE", "sampler is 'TPE', which Optuna does not have: choose one that exists"),
    "sampler that is none": ("--sampler BaseSampler", "did you mean CmaEsSampler or GPSampler or TPESampler?"),
    "sampler of parts": ("--sampler PartialFixedSampler", "sampler PartialFixedSampler cannot be made"),
    "sampler of a grid": (
        "--sampler GridSampler",
        "GridSampler goes through a grid to its end: list values in [space]",
    ),
    "pruner": ("--pruner Median", "did you mean MedianPruner?"),
    "pruner without its argument": ("--pruner PercentilePruner", "pruner PercentilePruner cannot be made"),
    "test batch": ("--test-batch d", "test batch 'd' does not exist: choose one that exists (found: a, b, c)"),
    "each and another": ("--test-batch each", "--test-batch each holds out every batch in turn: leave the others out"),
    "query that is no batch": ("--query d", "query 'd' is neither a batch of the data nor a file: choose one that"),
    "query that is no file": ("--query none.h5ad", "none.h5ad does not exist: did you mean cells.h5ad?"),
    "draws of nn": ("--method nn --protocol seed-best-of-10", "draws margin and lambda, and nn has none"),
    "studies in a file": (
        "--studies cells.h5ad",
        "cannot write cells.h5ad/new (Not a directory): choose other --studies",
    ),
    "configuration": ("--config none.toml", "none.toml cannot be read (No such file or directory): give a TOML file"),
    "configuration in a folder": ("--config studies", "studies cannot be read (Is a directory): give a TOML file"),
    "trials to enqueue": ("--enqueue none.toml", "none.toml cannot be read (No such file or directory)"),
    # the space
    "unknown setting": ("--set margins=1", "the space names 'margins', which is no setting to search: did you mean"),
    "method as a setting": ("--set method=nn", "the space names 'method', which is no setting to search: use --method"),
    "no values": ("--set margin=[]", "margin has no values to choose from: give at least one"),
    "a word among values": ("--set 'margin=[1, \"x\"]'", "margin is 'x': give a number"),
    "values of values": ("--set margin=[[1]]", "margin is [1]: give a number"),
    "half a range": ("--set margin={low=1}", "margin = {'low': 1} is no range: write margin = {low = ..., high = ...}"),
    "range upside down": ("--set margin={low=2,high=1}", "margin has low 2 above high 1: exchange them"),
    "logarithm of zero": ("--set margin={low=0,high=1,log=true}", "margin has low 0 on a logarithmic scale: give one"),
    "range with a step": ("--set margin={low=1,high=2,step=3}", "margin has 'step' beside low, high and log"),
    "range of fractions": ("--set hidden={low=1.5,high=3}", "hidden is 1.5: give a whole number"),
    "range of choices": ("--set schedule={low=1,high=2}", "schedule has choices, not a range: write a list of them"),
    "range without end": ("--set margin={low=1,high=inf}", "margin is inf"),
    "no number": ("--set lr=nan", "lr is nan"),
    "truth as a number": ("--set epochs=true", "epochs is True: give a whole number"),
    "mini-batch of one": ("--set batch_size=1", "batch_size is 1: give a value of at least 2"),
    "nothing": ("--set margin=", "margin is '': give a number"),
    "no key": ("--set =1", "--set '=1' is not of the form KEY=VALUE"),
    # where trials are kept
    "storage of an unknown kind": ("--storage foo://x", "storage 'foo://x' cannot be opened (Can't load plugin"),
    "storage, the remedy": ("--storage foo://x", "give a URL as sqlite:///FILE or postgresql://USER@HOST/DATABASE"),
    "storage in a word": ("--storage journal", "storage 'journal:...' cannot be opened (Could not parse"),
    "no storage": ("--storage ''", "storage ':...' cannot be opened (Could not parse"),
    "storage that is not there": (
        "--storage sqlite:///none/x.db",
        "(sqlite3.OperationalError) unable to open database",
    ),
    "storage that is no database": ("--storage sqlite:///cells.h5ad", "(sqlite3.DatabaseError) file is not a database"),
    "storage that is a folder": ("--storage sqlite:///studies", "unable to open database file"),
    "storage without driver": ("--storage mysql://u@127.0.0.1/db", "storage 'mysql://u@127.0.0.1/db' cannot be opened"),
    "storage that refuses": (
        "--storage postgresql://u:secret@127.0.0.1:1/db",
        "storage 'postgresql://u@127.0.0.1:1/db'",
    ),
    "storage at no port": ("--storage postgresql://h:port/db", "invalid literal for int() with base 10: 'port'"),
    "other storage": (
        "--name pilot --storage sqlite://",
        "was begun otherwise (storage was None and is now 'sqlite://')",
    ),
    # where checkpoints go
    "checkpoints of an unknown kind": (
        "--checkpoints foo://x",
        "checkpoints is 'foo://x', which cannot be opened (Proto",
    ),
    "checkpoints without driver": ("--checkpoints abfs://c/x", "checkpoints is 'abfs://c/x', which needs "),
    "checkpoints in a file": ("--checkpoints cells.h5ad", "cells.h5ad is no folder)"),
    "checkpoints under a file": ("--checkpoints cells.h5ad/x", "cells.h5ad is no folder)"),
    "checkpoints too long": (f"--checkpoints {'n' * 300}", "File name too long"),
    "checkpoints all the time": ("--checkpoint-every -1", "checkpoint_every is -1.0: give at least 0"),
    # Ray
    "address for one process": ("--address auto", "address is for the engine ray: set engine to ray, or leave address"),
    "GPUs for one process": ("--gpus-per-trial 1", "gpus_per_trial is for the engine ray"),
    "Ray's client": ("--engine ray --address ray://h:10001", "submit the whole command as a job instead"),
    "no address": ("--engine ray --address ''", "address is '': give auto, or HOST:PORT"),
    "no port": ("--engine ray --address head", "address is 'head': give auto, or HOST:PORT"),
    "port in words": ("--engine ray --address head:port", "address is 'head:port': give auto, or HOST:PORT"),
    "one and a half GPUs": ("--engine ray --gpus-per-trial 1.5", "gpus_per_trial is 1.5: give a fraction of a GPU, or"),
    "negative GPUs": ("--engine ray --gpus-per-trial -1", "gpus_per_trial is -1.0: give a fraction of a GPU"),
    "GPUs that are no number": ("--engine ray --gpus-per-trial nan", "gpus_per_trial is nan"),
    "no CPUs": ("--engine ray --cpus-per-trial 0", "cpus_per_trial is 0: give at least 1"),
    "no packs at once": ("--engine ray --concurrency -1", "concurrency is -1: give at least 0"),
    "fewer than no failures": ("--engine ray --max-failures -2", "max_failures is -2: give at least -1"),
}


@pytest.mark.parametrize(("words", "told"), SEARCH.values(), ids=SEARCH)
def test_searches_as_they_cannot_be_asked_for(words: str, told: str) -> None:
    refused(told, *searching("new", *shlex.split(words)))


CONFIGURATIONS = {
    "not TOML": ("a = [", "f.toml is not TOML ("),
    "twice the same": ("[study]\ntrials = 1\ntrials = 2", "f.toml is not TOML (Cannot overwrite a value"),
    "outside a table": ("trials = 3", "trials in f.toml stands outside a table: put it under [study] or [data]"),
    "array of tables": ("[[space]]\nmargin = 1", "space in f.toml stands outside a table"),
    "table": (
        "[modle]\nmargin = 1",
        "unknown table [modle] in f.toml: did you mean",
    ),
    "key of the study": ("[study]\ntrails = 3", "unknown setting 'trails' of [study]: did you mean trials"),
    "key of the data": ("[data]\nlabel_key = 'x'", "unknown setting 'label_key' of [data]: did you mean labels_key"),
    "another table's": ("[study]\nspace = {margin = 1}", "unknown setting 'space' of [study]"),
    "another table's options": ("[study]\nsampler_options = {a = 1}", "unknown setting 'sampler_options' of [study]"),
    "text, not a number": ("[study]\npatience = 1\npack = 'x'", "unknown setting 'patience' of [study]"),
    "a number, not text": (
        "[study]\nstorage = 3\ncheckpoints = 5",
        "storage is 3: give text; checkpoints is 5: give text",
    ),
    "a word, not a truth": ("[study]\nreference = 'yes'", "reference is 'yes': give true or false"),
    "a truth, not a number": ("[study]\nrepeats = true", "repeats is True: give a whole number"),
    "GPUs": ("[study]\nengine = 'ray'\ngpus_per_trial = 'x'", "gpus_per_trial is 'x': give a fraction of a GPU"),
    "what values are": ("[data]\nvalues = 'raw'", "values is 'raw': choose one of auto, counts, linear"),
    "cells without label": ("[data]\nunlabeled = 'maybe'", "unlabeled is 'maybe': choose one of error, drop, domain"),
    "adaptation": ("[data]\nadapt = 'yes'", "adapt is 'yes': give true or false"),
    "date in the space": ("[space]\nmargin = 2020-01-01", "margin is datetime.date(2020, 1, 1): give a number"),
    "two in the space": (
        "[space]\nmargin = 'x'\nlr = {low = 1}",
        "margin is 'x': give a number; lr = {'low': 1} is no",
    ),
    "option of the sampler": ("[sampler]\nn_startup = 3", "TPESampler has no option 'n_startup': did you mean"),
    "sampler's name": ("[sampler]\nname = 5", "sampler is 5: give text"),
    "option of the pruner": ("[pruner]\nn_startup_trials = 'x'", "pruner MedianPruner cannot be made ("),
    "pruner's name": ("[pruner]\nname = ''", "pruner is '', which Optuna does not have"),
    "trials to enqueue": ("[study]\nenqueue = 5", "enqueue is 5: give a list of tables of settings, or the name of a"),
    "trials that are none": ("[study]\nenqueue = [5]", "enqueue is (5,): give a list of tables of settings"),
    "trials of what is not": (
        "[study]\nenqueue = [{hiden = 8}]",
        "trial 1 to enqueue: 'hiden' is no setting: did you mean",
    ),
    "file of trials": ("[study]\nenqueue = 'none.toml'", "none.toml cannot be read (No such file or directory)"),
}


@pytest.mark.parametrize(("text", "told"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_configurations(text: str, told: str) -> None:
    Path("f.toml").write_text(text)
    refused(told, *searching("new", "--config", "f.toml"))


ENQUEUED = {
    "empty": ("", "f.toml does not list trials: write the settings of each under [[trial]]"),
    "other tables": ("[[trials]]\nhidden = 8", "f.toml does not list trials"),
    "one table": ("[trial]\nhidden = 8", "f.toml does not list trials"),
    "no table": ("trial = 5", "f.toml does not list trials"),
    "outside the space": ("[[trial]]\nhidden = 9", "trial 1 to enqueue: hidden = 9 is outside 8 (fixed)"),
    "no setting": ("[[trial]]\nhiden = 8", "trial 1 to enqueue: 'hiden' is no setting: did you mean hidden"),
    "a word": ("[[trial]]\nmargin = 'x'", "trial 1 to enqueue: margin = 'x' is outside 0.1 to 10 (log)"),
    "a range": ("[[trial]]\nmargin = {low = 1}", "trial 1 to enqueue: margin = {'low': 1} is outside 0.1 to 10 (log)"),
}


@pytest.mark.parametrize(("text", "told"), ENQUEUED.values(), ids=ENQUEUED)
def test_trials_to_enqueue(text: str, told: str) -> None:
    Path("f.toml").write_text(text)
    refused(told, *searching("new", "--enqueue", "f.toml"))


SPLITS = {
    "empty": ("", "f.json holds no splits", "split file f.json is not JSON (Expecting value"),
    "list": ("[]", "f.json holds no splits", "split file f.json is not a JSON object"),
    "cut off": ('{"splits"', "f.json holds no splits", "split file f.json is not JSON ("),
    "no splits": ("{}", "f.json holds no splits: give a JSON file with", "has no text under 'test_domain': add it"),
    "no test": ('{"splits": {"p": {}}}', "has no text under 'test_domain': add it", "has no text under 'test_domain'"),
}


@pytest.mark.parametrize(("text", "of_all", "of_one"), SPLITS.values(), ids=SPLITS)
def test_files_of_splits(text: str, of_all: str, of_one: str) -> None:
    Path("f.json").write_text(text)
    refused(of_all, "reproduce", "cells.h5ad", "--splits", "f.json", "--no-track", "-q")
    refused(of_one, "search", "cells.h5ad", "--split", "f.json:p", "--name", "new", "--no-track", "-q")
    refused(of_one, "train", "cells.h5ad", "--split", "f.json:p", "-q")


# --- the other commands: what is typed

COMMANDS = {
    "search without a name": ("search --trials 3", "no name: give --name NAME; give either a file DATA.h5ad or"),
    "search without keys": ("search cells.h5ad --name new --no-track", "give --labels-key and --batch-key"),
    "search without data": ("search --name new", "give either a file DATA.h5ad or --dataset NAME"),
    "search a model": (
        "search model --labels-key celltype --batch-key tech --name new --no-track",
        "model is a directory: name the .h5ad file itself",
    ),
    "search a data set": ("search --dataset pancreas7 --name new --no-track", "did you mean pancreas"),
    "search in no folder": ("search --dataset pancreas1 --path none --name new --no-track", "none does not exist"),
    "every batch of a split": (
        "search --dataset pancreas1 --test-batch each --name new",
        "a data set or split has its",
    ),
    "a split's form": ("search cells.h5ad --split f.json --name new --no-track", "is not of the form FILE:NAME"),
    "a split's file": (
        "search cells.h5ad --split none.json:p --name new --no-track",
        "none.json cannot be read (No such",
    ),
    "draws without test": (
        "search cells.h5ad --labels-key celltype --batch-key tech --protocol seed-best-of-10 --name new --no-track",
        "seed-best-of-10 takes the best on test cells: hold a batch out with --test-batch",
    ),
    "option": ("search --trails 5", "No such option: --trails (Possible options: --track, --trials"),
    "option without value": ("search --trials", "Option '--trials' requires an argument"),
    "status": ("status pilto", "there is no study 'pilto' in studies: did you mean pilot?"),
    "status of all, by an empty name": ("status ''", "there is no study '' in studies"),
    "status outside": ("status ../here/studies/pilot", "there is no study '../here/studies/pilot' in studies"),
    "status, absolute": ("status /etc", "there is no study '/etc' in studies"),
    "status of a folder": ("status pilot/", "there is no study 'pilot/' in studies: did you mean pilot?"),
    "status of a long name": (f"status {'n' * 300}", "in studies: choose one that exists (found: pilot)"),
    "status elsewhere": ("status pilot --studies none", "there is no study 'pilot' in none"),
    "status in a file": ("status pilot --studies cells.h5ad", "there is no study 'pilot' in cells.h5ad"),
    "compare": ("compare pilot none", "there is no study 'none' in studies"),
    "compare nothing": ("compare", "Missing argument"),
    "report": ("report pilto", "there is no study 'pilto' in studies: did you mean pilot?"),
    "report of all, by a dot": ("report .", "there is no study '.' in studies"),
    "report on its data": (
        "report pilot --data none.h5ad",
        "--data none.h5ad does not exist: give the file of the cells",
    ),
    "report to a file": ("report pilot --no-cells -q -o cells.h5ad", "cannot write to cells.h5ad (Not a directory)"),
    "report on a model": ("report model --studies .", "there is no study 'model' in .: choose one that exists"),
    "report untracked": ("report pilot --from-mlflow", "there is no MLflow store sqlite:///"),
    "export": ("export pilto -o out", "there is no study 'pilto' in studies: did you mean pilot?"),
    "export outside": ("export ../here/studies/pilot -o out", "there is no study '../here/studies/pilot' in studies"),
    "export onto a model": (
        "export pilot -o model",
        "model exists: choose another name, or replace it with --overwrite",
    ),
    "export onto a file": ("export pilot -o cells.h5ad", "cells.h5ad is a file: give the name of a folder"),
    "export onto studies": (
        "export pilot -o studies --overwrite",
        "studies holds other things than a model, as 'pilot'",
    ),
    "sync": ("sync pilto", "there is no study 'pilto' in studies: did you mean pilot?"),
    "peers": ("peers pilto", "there is no study 'pilto' in studies: did you mean pilot?"),
    "peer": ("peers pilot --peer svm", "peer 'svm' is unknown: did you mean scvi? (found: logistic, harmony"),
    "peer's Python": ("peers pilot --python scvi", "--python is 'scvi': write PEER=PYTHON"),
    "another's Python": ("peers pilot --python svm=python", "an interpreter is given for 'svm', which is no peer"),
    "Python that is none": (
        "peers pilot --peer scanvi --python scanvi=/none",
        "'/none' cannot be run (--python scanvi=",
    ),
    "peers' trials": ("peers pilot --trials -1", "trials are -1: give 0 for the defaults, or more"),
    "peers' time": ("peers pilot --timeout -1", "the time limit is -1 s: give more than 0"),
    "peers' endless time": ("peers pilot --timeout nan", "the time limit is nan s: give more than 0"),
    "peers' device": ("peers pilot --device gpu", "device 'gpu' is unknown: choose auto, cpu, cuda or cuda:N"),
    "peers' data": ("peers pilot --data none.h5ad", "none.h5ad does not exist: did you mean cells.h5ad?"),
    "reproduce nothing": ("reproduce", "what to reproduce is not clear: give DATA.h5ad with --splits FILE.json, or"),
    "reproduce both": ("reproduce cells.h5ad --dataset pancreas", "what to reproduce is not clear"),
    "reproduce no splits": ("reproduce cells.h5ad", "what to reproduce is not clear"),
    "reproduce a data set": ("reproduce --dataset pancreas7", "data set 'pancreas7' does not exist: did you mean"),
    "reproduce in no folder": ("reproduce --dataset pancreas1 --path none", "none does not exist"),
    "reproduce without file": ("reproduce cells.h5ad --splits none.json", "none.json cannot be read (No such file or"),
    "ui's port": ("ui --port http", "Invalid value for '--port': Input should be a valid integer"),
    "ui's large port": ("ui --port 99999", "Input should be less than or equal to 65535, not '99999'"),
    "simulate nothing": ("simulate", "Missing argument"),
    "simulate too much": ("simulate out.h5ad --cells 1000000000000000 --genes 20", "take fewer cells, genes or seeds"),
    "simulate backwards": ("simulate out.h5ad --seed -1", "Input should be greater than or equal to 0, not '-1'"),
    "simulate onto a folder": ("simulate studies", "studies is a directory: give the name of a file"),
    "datasets by name": ("datasets pancreas", "Got unexpected extra argument(s) (pancreas)"),
    "doctor of something": ("doctor pilot", "Got unexpected extra argument(s) (pilot)"),
    "train on a model": (
        "train model --labels-key celltype --batch-key tech -o new",
        "model is a directory: name the .h5ad file itself",
    ),
    "predict by no study": (
        "predict cells.h5ad --model studies/pilots -o out.h5ad",
        "studies/pilots is neither a folder nor a study in studies (--studies): did you mean pilot",
    ),
    "two test batches": (
        "train cells.h5ad --labels-key celltype --batch-key tech --test-batch a --test-batch e",
        "test batch 'e' does not exist: choose one that exists (found: a, b, c)",
    ),
    "columns, batch and setting at once: columns": (
        "search cells.h5ad --labels-key cell_type --batch-key batch --test-batch a --trials 0 --set hiden=3",
        "(--labels-key): did you mean celltype? (found: celltype, tech); obs has no column 'batch' (--batch-key)",
    ),
    "columns, batch and setting at once: batch": (
        "search cells.h5ad --labels-key cell_type --batch-key batch --test-batch a --trials 0 --set hiden=3",
        "test batch 'a' is in obs['tech']: name that column as --batch-key",
    ),
    "columns, batch and setting at once: setting": (
        "search cells.h5ad --labels-key cell_type --batch-key batch --test-batch a --trials 0 --set hiden=3",
        "trials is 0: give at least 1",
    ),
    "the same of train": (
        "train cells.h5ad --labels-key cell_type --batch-key tech --test-batch e --set hiden=3 -o new",
        "obs has no column 'cell_type' (--labels-key): did you mean celltype? (found: celltype, tech); test batch 'e'",
    ),
    "help of no command": ("help serach", "No such command 'serach'. Did you mean 'search'?"),
    "status for people and programs": ("status --watch --json", "--watch is for people, --json for programs: leave"),
    "a webhook that is none": (
        "search cells.h5ad --labels-key celltype --batch-key tech --notify hook",
        "--notify is no",
    ),
    "the columns of a file": ("train cells.h5ad -o new", "(found: celltype (3 values), tech (3 values))"),
}


@pytest.mark.parametrize(("words", "told"), COMMANDS.values(), ids=COMMANDS)
def test_commands_as_they_cannot_be_asked_for(words: str, told: str) -> None:
    refused(told, *shlex.split(words))


def test_the_table_knows_every_command() -> None:
    """What is refused of `compare`, say, was tried."""
    lines = [line.split("│")[1].split() for line in run("--help").out.split("Commands")[1].splitlines() if "│" in line]
    known = {words[0] for words, line in ((line, line) for line in lines) if words and words[0].islower()}
    tried = {words.split()[0] for words, _ in COMMANDS.values()}
    assert {"search", "compare", "doctor"} <= known & tried
    assert {name for name in known if run(name, "--help").status == 0} == tried


# --- a study that is gone on with otherwise

CONTINUED: dict[str, tuple[Change, str, str]] = {
    "other cells": (
        lambda: tiny(seed=5).write_h5ad("cells.h5ad"),
        "",
        "(the training cells are not the same; the test",
    ),
    "other genes": (lambda: tiny(genes=30).write_h5ad("cells.h5ad"), "", "(the training cells are not the same"),
    "other types": (
        lambda: tiny(cell_types=("x", "y")).write_h5ad("cells.h5ad"),
        "",
        "the training cells are not the same",
    ),
    "other batches": (
        lambda: tiny(cells={"a": 9, "b": 9}).write_h5ad("cells.h5ad"),
        "",
        "test batch 'c' does not exist",
    ),
    "one batch": (
        lambda: tiny(cells={"a": 9, "c": 9}).write_h5ad("cells.h5ad"),
        "",
        "needs two training batches, there is",
    ),
    "no cells": (lambda: Path("cells.h5ad").unlink(), "", "cells.h5ad does not exist"),
    "half of the file": (
        lambda: truncated(Path("cells.h5ad")),
        "",
        "cells.h5ad is truncated: copy or download it again",
    ),
    "another setting": (
        lambda: None,
        "--set margin=1",
        "begun otherwise (margin was None and is now 1): give another --name",
    ),
    "another method": (lambda: None, "--method nn", "begun otherwise (method was 'scdgn' and is now 'nn')"),
    "another seed": (
        lambda: None,
        "--seed 1",
        "(seed was 0 and is now 1): give another --name, or --fresh to set the old",
    ),
}


@pytest.mark.parametrize(("change", "words", "told"), CONTINUED.values(), ids=CONTINUED)
def test_studies_that_are_continued_otherwise(change: Change, words: str, told: str) -> None:
    change()
    refused(told, *searching("pilot", *words.split()))


# --- damage in a study's folder: what reads it says which file, and how it comes back

READERS = {
    "search": searching("pilot"),
    "status": ("status", "pilot"),
    "report": ("report", "pilot", "--no-cells", "-q"),
    "export": ("export", "pilot", "-o", "out"),
    "sync": ("sync", "pilot"),
}


def written(name: str, content: str | bytes) -> Change:
    return lambda: (FOLDER / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def replaced(name: str, old: str, new: str) -> Change:
    def change() -> None:
        text = (FOLDER / name).read_text()
        assert old in text
        (FOLDER / name).write_text(text.replace(old, new))

    return change


def folder_instead(name: str) -> Change:
    return lambda: ((FOLDER / name).unlink(), (FOLDER / name).mkdir())


def fourth_line(line: str) -> Change:
    def change() -> None:
        lines = (FOLDER / "study.journal").read_text().splitlines()
        (FOLDER / "study.journal").write_text("\n".join([*lines[:3], line, *lines[4:], ""]))

    return change


ALL = tuple(READERS)
LOOKING = (
    "status",
    "report",
    "sync",
)  # a search compares the settings with its own, and puts those right that may change
BARE = "[study]\nname = 'pilot'\n[data]\n[sampler]\nname = 'TPESampler'\n[pruner]\nname = 'MedianPruner'\n"
DAMAGED: dict[str, tuple[Change, tuple[str, ...], str]] = {
    "empty settings": (
        written("study.toml", ""),
        ALL,
        "study.toml is damaged (it has no study): restore it, or use --fresh",
    ),
    "binary settings": (
        written("study.toml", b"\xff\xfe"),
        ALL,
        "study.toml cannot be read ('utf-8' codec can't decode",
    ),
    "settings cut off": (written("study.toml", "[study"), ALL, "study.toml cannot be read (Expected ']'"),
    "settings a folder": (folder_instead("study.toml"), ALL, "study.toml cannot be read ([Errno 21] Is a directory"),
    "no tables": (written("study.toml", "study = 3\ndata = 4"), ALL, "study.toml is damaged (it has no study)"),
    "no record": (written("study.toml", BARE), ALL, "study.toml is damaged (it has no record)"),
    "no id": (replaced("study.toml", 'id = "', 'ids = "'), ALL, "study.toml is damaged (it has no record.id)"),
    "no versions": (replaced("study.toml", "record.versions", "record.v"), ALL, "(it has no record.versions)"),
    "no fingerprint": (
        replaced("study.toml", 'training = "', 'train = "'),
        ALL,
        "(it has no record.fingerprint.training)",
    ),
    "no sampler": (replaced("study.toml", 'name = "TPESampler"', ""), ALL, "(it has no sampler.name)"),
    "unknown setting": (
        replaced("study.toml", "pack = 0", "pace = 0"),
        LOOKING,
        "the study.toml of the study 'pilot' is damaged (unknown setting 'pace' of [study]: did you mean pack",
    ),
    "a word": (
        replaced("study.toml", "trials = 2", "trials = 'x'"),
        LOOKING,
        "(trials is 'x': give a whole number): restore",
    ),
    "out of range": (replaced("study.toml", "trials = 2", "trials = -2"), LOOKING, "(trials is -2: give at least 1)"),
    "no path": (replaced("study.toml", 'data = "cells.h5ad"', "data = 5"), LOOKING, "(data is 5: give text)"),
    "space": (
        replaced("study.toml", "hidden = 8", "hiden = 8"),
        LOOKING,
        "(the space names 'hiden', which is no setting",
    ),
    "trials in line": (
        replaced("study.toml", "enqueue = []", "enqueue = 5"),
        LOOKING,
        "(enqueue is 5: give a list of tables",
    ),
    "labels": (
        replaced("study.toml", 'unlabeled = "error"', 'unlabeled = "x"'),
        LOOKING,
        "(unlabeled is 'x': choose one of error, drop, domain)",
    ),
    "settings of another": (
        replaced("study.toml", 'method = "scdgn"', 'method = "nn"'),
        ("search",),
        "(method was 'nn' and is now 'scdgn')",
    ),
    "half a summary": (lambda: truncated(FOLDER / "summary.json"), ALL, "summary.json cannot be read ("),
    "no object": (
        written("summary.json", "[]"),
        ALL,
        "summary.json cannot be read (its checksum does not fit): remove it",
    ),
    "no winner": (replaced("summary.json", '"winner"', '"winer"'), ALL, "and the same `scdgn search` writes it again"),
    "another score": (
        replaced("summary.json", '"test_cells": 40', '"test_cells": 41'),
        ALL,
        "its checksum does not fit",
    ),
    "deep summary": (
        written("summary.json", "[" * 100_000),
        ALL,
        "summary.json cannot be read (it is nested too deeply)",
    ),
    "summary a folder": (folder_instead("summary.json"), ALL, "summary.json cannot be read ([Errno 21] Is a directory"),
    "garbage in the journal": (
        fourth_line("{garbage"),
        ("search", *LOOKING),
        "study.journal cannot be opened (Expecting",
    ),
    "a number in the journal": (fourth_line("5"), ("search", *LOOKING), "study.journal cannot be opened ("),
    "no such operation": (
        fourth_line('{"op_code": 99, "worker_id": "x"}'),
        ("search", *LOOKING),
        "restore it, or set the",
    ),
    "half an operation": (
        fourth_line('{"worker_id": "x"}'),
        ("search", *LOOKING),
        "study.journal cannot be opened ('op_",
    ),
    "journal a folder": (
        folder_instead("study.journal"),
        LOOKING,
        "study.journal cannot be opened ([Errno 21] Is a dir",
    ),
    "journal a folder, to write": (
        folder_instead("study.journal"),
        ("search",),
        "cannot write studies/pilot/study.journal",
    ),
    "record of a trial": (
        replaced("study.journal", '"training_domain":{', '"training_domain":{"x":1,'),
        ("search", *LOOKING),
        "what the study keeps of trial 0 is damaged (",
    ),
    "weights": (lambda: truncated(FOLDER / "model/weights.safetensors"), ("export",), "model is damaged"),
    "model's document": (lambda: truncated(FOLDER / "model/model.json"), ("export",), "copy or train the model again"),
    "model of another version": (
        lambda: edit(FOLDER / "model/model.json", "version", 9),
        ("export",),
        "model is a bundle of version 9",
    ),
    "no model": (lambda: shutil.rmtree(FOLDER / "model"), ("export",), "studies/pilot/model is not a folder"),
    "no summary": (
        lambda: (FOLDER / "summary.json").unlink(),
        ("report",),
        "none of pilot is finished: run `scdgn search`",
    ),
    "no summary to export": (lambda: (FOLDER / "summary.json").unlink(), ("export",), "finish it with `scdgn search`"),
}


@pytest.mark.parametrize(("change", "readers", "told"), DAMAGED.values(), ids=DAMAGED)
def test_damage_in_a_studys_folder(change: Change, readers: tuple[str, ...], told: str) -> None:
    change()
    for reader in readers:
        refused(told, *READERS[reader])


@pytest.mark.parametrize("command", ["compare", "peers"])
def test_studies_that_are_not_finished(command: str) -> None:
    (FOLDER / "summary.json").unlink()
    refused("none of pilot is finished: run `scdgn search` again", command, "pilot")


def test_the_cells_of_a_study_have_changed() -> None:
    tiny(seed=5).write_h5ad("cells.h5ad")
    told = "cells.h5ad does not hold the cells that the study 'pilot' worked on: give the file of then with --data"
    refused(told, "peers", "pilot", "--peer", "logistic")


@pytest.mark.parametrize("content", [b"\xff", b"[]", b"{}", b'{"trials": 3}', b'{"host": "x", "pid": "y"}'])
@pytest.mark.parametrize("name", ["lease.json", "fleet.json"])
def test_what_is_only_of_the_moment_may_be_damaged(name: str, content: bytes) -> None:
    """Who works on a study is written again by the next who does."""
    (FOLDER / name).write_bytes(content)
    assert "2 complete" in done("status", "pilot").out
    done(*searching("pilot"))


# --- where studies are tracked

ENVIRONMENTS: dict[str, tuple[str | bytes, str]] = {
    "malformed": ("MLFLOW TRACKING", "line 1 of mlflow.env is "),
    "no value": (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_TRACKING_URI in mlflow.env has no value: write MLFLOW_TRACKING_URI=VALUE",
    ),
    "open quotation": ("MLFLOW_TRACKING_URI='sqlite:///x.db", "line 1 of mlflow.env is "),
    "unknown": ("MLFLOW_TRAKING_URI=x", "sets MLFLOW_TRAKING_URI, which is none: did you mean MLFLOW_TRACKING_URI?"),
    "binary": (b"\xff\xfe\x00\x01", "mlflow.env cannot be read ('utf-8' codec can't decode"),
    "UTF-16": ("MLFLOW_TRACKING_URI=x".encode("utf-16"), "mlflow.env cannot be read ('utf-8' codec can't decode"),
}


@pytest.mark.parametrize(("content", "told"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_environment_files(content: str | bytes, told: str) -> None:
    """A search says so before its first trial, not after the last."""
    Path("mlflow.env").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(told, "sync", "pilot")
    refused(told, "doctor")
    refused(told, *(word for word in searching("new") if word != "--no-track"))


def test_a_folder_for_an_environment_file() -> None:
    Path("mlflow.env").mkdir()
    refused("mlflow.env cannot be read ([Errno 21] Is a directory: 'mlflow.env'): mend or remove it", "sync", "pilot")


def test_names_that_scdgn_does_not_know_are_others_business() -> None:
    Path("mlflow.env").write_text(
        "PGPASSWORD=x\nMLFLOW_TRACKING_USERNAME=y\nMLFLOW_HTTP_REQUEST_TIMEOUT=1\nPAGER=less\n"
    )
    assert "scdgn" in done("doctor").out


STORES = {
    "unknown kind": ("foo://x", "Can't load plugin: sqlalchemy.dialects:foo"),
    "a word": ("mlruns", "MLFLOW_TRACKING_URI is 'mlruns', a folder, and MLflow no longer writes runs into folders"),
    "nothing": ("", "MLFLOW_TRACKING_URI is empty: set it in mlflow.env to sqlite:///FILE"),
    "files": ("file:///tmp/mlruns", "`mlflow migrate-filestore` takes the runs along"),
    "no database": ("sqlite:///cells.h5ad", "file is not a database"),
    "a folder": ("sqlite:///studies", "unable to open database file"),
    "under a file": ("sqlite:///cells.h5ad/x.db", "cells.h5ad"),
    "no port": ("http://127.0.0.1:port", "MLFLOW_TRACKING_URI is 'http://127.0.0.1:port'"),
    "nobody there": ("postgresql://u:secret@127.0.0.1:1/x", "connection failed"),
}


@pytest.mark.parametrize(("uri", "told"), STORES.values(), ids=STORES)
def test_places_where_runs_cannot_be_kept(uri: str, told: str) -> None:
    Path("mlflow.env").write_text(f"MLFLOW_TRACKING_URI={uri}\n")
    refused(told, "sync", "pilot")


# --- what is refused when something has been written, by valid work or by a library


def test_a_model_is_copied_out_though_it_cannot_be_registered() -> None:
    Path("mlflow.env").write_text("MLFLOW_TRACKING_URI=foo://x\n")
    ran = run("export", "pilot", "-o", "out")
    assert ran.status == 2 and ran.err.startswith("error: the model is in out, but not registered: ")
    done("predict", "cells.h5ad", "--model", "out", "-o", "out.h5ad", "-q")


def test_predictions_that_cannot_be_read_are_told_after_the_trials() -> None:
    """Nothing but the table of protocols needs them, so the search ends; without them it is done."""
    path = FOLDER / "predictions" / "00000.npz"
    truncated_to_nothing = path.read_bytes()[:20]
    path.write_bytes(truncated_to_nothing)
    ran = run(*searching("pilot", "--trials", "3"))
    assert ran.status == 2 and ran.err.count("\n") == 1
    assert f"{path} cannot be read (" in ran.err and "remove it" in ran.err
    path.unlink()
    done(*searching("pilot", "--trials", "3"))
    assert json.loads(done("status", "pilot", "--json").out)["states"] == {"complete": 3}


def test_another_programs_database_is_no_storage() -> None:
    """Optuna adds its tables to any database; the study is not begun."""
    with sqlite3.connect("other.db") as database:
        database.execute("create table studies (x int)")
    database.close()
    ran = run(*searching("new", "--storage", "sqlite:///other.db"))
    assert ran.status == 2 and ran.err.startswith("error: storage 'sqlite:///other.db' cannot be opened (")
    assert not Path("studies/new").exists()


def test_a_summary_that_was_damaged_is_written_again() -> None:
    """The remedy that is told."""

    def told() -> list[dict[str, Any]]:
        return [
            {**one, "summary": {key: value for key, value in one["summary"].items() if key != "trained"}}
            for one in map(json.loads, done("status", "pilot", "--json").out.splitlines())
        ]

    before = told()
    (FOLDER / "summary.json").unlink()
    done(*searching("pilot"))
    assert told() == before  # but for the times of a training that was done again
