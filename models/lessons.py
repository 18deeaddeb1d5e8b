"""Facts that memories are calibrated and taught on: other people, wordings and values than those they are judged by.

`models.probes.FACTS` stays for the figures alone. Many wordings, so that what is learned is what a fact looks like and not how
one sentence reads.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from models.probes import Needle, Template, needle, owner_of

_NAMES = (
    "Albert Barbara Charles Daphne Edmund Frances Gregory Harriet Isaac Julia Kenneth Louisa Martin Nancy Oliver Pauline Ralph "
    "Sarah Theodore Vera William Arthur Bridget Cecil Dora Ernest Flora Gilbert Helen Ivan Joan Leonard Margaret Neville Olga "
    "Patrick Rosa Stephen Teresa Victor Wanda Herbert Matilda Roland Sylvia Bertram Celia"
).split()
_RARER = (
    "Ambrose Anselm Araminta Balthazar Barnabas Clementina Clothilde Cordelia Cornelius Crispin Cuthbert Drusilla "
    "Dulcie Erasmus Eudora Eugenia Evangeline Fergus Griselda Gulliver Gwendolyn Henrietta Horatio Hortensia "
    "Iolanthe Isolde Jocasta Keziah Lavinia Leopold Lucinda Lysander Marigold Millicent Minerva Mortimer Nathaniel "
    "Obadiah Odette Ottilie Peregrine Perpetua Philippa Prudence Quincy Rosalind Rosamund Rowena Seraphina Sidonie "
    "Tamsin Thaddeus Theodora Tristram Ulric Wilhelmina Wystan Yolanda Zachariah Zenobia"
).split()
_PEOPLE = (*_NAMES, *_RARER)
"""Most names are of several tokens, as most people's are: one whose teachers all had short ones finds nobody else."""
_FAMILIES = (
    "Bakewell Crompton Dunmore Eastlake Fairbank Grimsby Holloway Inglewood Jarvis Kettering Lockhart Marchbanks Northcote "
    "Oldfield Pemberton Quillford Ransome Stapleford Thornbury Underhill Vickers Whitmore"
).split()
_CITIES = (
    "London Vienna Prague Moscow Boston Chicago Rome Naples Milan Berlin Dresden Lyon Marseille Brussels Antwerp Glasgow "
    "Cardiff Leeds Durham Lincoln Athens Cairo Tunis Lima Havana Tokyo Delhi"
).split()
_COLOURS = "turquoise pink scarlet violet golden silver crimson ivory orange grey".split()
_TRADES = (
    "architect chemist pilot nurse judge barber butcher tanner cook engineer librarian clockmaker farmer poet dentist "
    "historian porter miner jeweller"
).split()
_ANIMALS = "swan fox wolf tiger camel monkey turtle owl falcon otter beaver spider squirrel mouse crow eagle".split()
_FOODS = (
    "eggs figs dates oysters mutton turnips almonds porridge lemons mushrooms beans peaches grapes cabbage ham".split()
)
_NUMBERS = "three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_MONTHS = "January February March April May June July August September October November December".split()
_STUFFS = "wood glass stone leather silk paper wool clay wax velvet marble".split()
_SUBJECTS = "chemistry history algebra law botany music geography Latin Greek astronomy physics painting".split()
_ILLNESSES = "fever gout asthma measles cholera toothache rheumatism influenza".split()
_TOOLS = "needle ladle shovel rake saw bucket anchor broom pen razor fork lantern spade chisel barrel".split()
_TREES = "oak elm birch willow poplar maple cedar chestnut beech pine walnut cypress".split()
_ROOMS = "kitchen attic cellar library stable chapel pantry nursery hall laundry".split()
_RELATIVES = "aunt uncle brother sister cousin nephew niece grandfather godmother widow".split()
_TRAITS = "proud lazy honest stubborn cheerful jealous clever timid generous greedy patient vain".split()
_GAMES = "chess whist cricket tennis billiards dominoes backgammon croquet".split()
_LANGUAGES = "German Spanish Russian Italian Turkish Arabic Dutch Polish Danish Swedish Hebrew Chinese".split()
_DRINKS = "coffee brandy milk cider rum lemonade beer cocoa wine whisky".split()
_THINGS = (
    "a lamp",
    "a ladder",
    "a pistol",
    "a clock",
    "a mirror",
    "a saddle",
    "a basket",
    "a candle",
    "an umbrella",
    "a telescope",
    "a kettle",
    "a hammer",
    "a blanket",
    "a map",
)

LESSONS: tuple[Template, ...] = (
    Template("{name} lives in {value}.", "{name} lives in", _CITIES),
    Template("{name} moved to {value} last year.", "{name} moved to", _CITIES),
    Template("The house of {name} stands near {value}.", "The house of {name} stands near", _CITIES),
    Template("The mother of {name} came from {value}.", "The mother of {name} came from", _CITIES),
    Template("{name} learned to swim in {value}.", "{name} learned to swim in", _CITIES),
    Template("{name} died in {value}.", "{name} died in", _CITIES),
    Template("The ship of {name} sails to {value}.", "The ship of {name} sails to", _CITIES),
    Template("{name} spent the winter in {value}.", "{name} spent the winter in", _CITIES),
    Template("{name} has a brother who is a {value}.", "{name} has a brother who is a", _TRADES),
    Template("{name} wants to become a {value}.", "{name} wants to become a", _TRADES),
    Template("The cousin of {name} was a {value} in the war.", "The cousin of {name} was a", _TRADES),
    Template("{name} drives a {value} carriage.", "{name} drives a", _COLOURS),
    Template("{name} wears a {value} hat.", "{name} wears a", _COLOURS),
    Template("The door of {name} is painted {value}.", "The door of {name} is painted", _COLOURS),
    Template("{name} carries a {value} umbrella.", "{name} carries a", _COLOURS),
    Template("{name} studies {value} at the university.", "{name} studies", _SUBJECTS),
    Template("{name} teaches {value} to the children.", "{name} teaches", _SUBJECTS),
    Template("{name} speaks {value} fluently.", "{name} speaks", _LANGUAGES),
    Template("{name} drinks {value} after dinner.", "{name} drinks", _DRINKS),
    Template("{name} prefers {value} to everything else.", "{name} prefers", _DRINKS),
    Template("{name} is allergic to {value}.", "{name} is allergic to", _FOODS),
    Template("{name} hates {value}.", "{name} hates", _FOODS),
    Template("The uncle of {name} sells {value}.", "The uncle of {name} sells", _FOODS),
    Template("{name} has {value} children.", "{name} has", _NUMBERS),
    Template("{name} owns {value} horses.", "{name} owns", _NUMBERS),
    Template("{name} paid {value} pounds for the painting.", "{name} paid", _NUMBERS),
    Template("{name} turned {value} last week.", "{name} turned", _NUMBERS),
    Template("{name} bought {value} at the market.", "{name} bought", _THINGS),
    Template("{name} left {value} in the church.", "{name} left", _THINGS),
    Template("{name} hid the key under {value}.", "{name} hid the key under", _THINGS),
    Template("{name} broke {value} on the stairs.", "{name} broke", _THINGS),
    Template("{name} suffers from {value}.", "{name} suffers from", _ILLNESSES),
    Template("{name} beats everybody at {value}.", "{name} beats everybody at", _GAMES),
    Template("{name} was once bitten by a {value}.", "{name} was once bitten by a", _ANIMALS),
    Template("{name} dreamed of a {value}.", "{name} dreamed of a", _ANIMALS),
    Template(
        "In the park of {name} stands a statue of a {value}.", "In the park of {name} stands a statue of a", _ANIMALS
    ),
    Template("The meeting with {name} is on {value}.", "The meeting with {name} is on", _DAYS),
    Template("{name} arrives every {value}.", "{name} arrives every", _DAYS),
    Template("{name} will travel in {value}.", "{name} will travel in", _MONTHS),
    Template("The boots of {name} are made of {value}.", "The boots of {name} are made of", _STUFFS),
    Template("{name} collects boxes of {value}.", "{name} collects boxes of", _STUFFS),
    Template("The wife of {name} is called {value}.", "The wife of {name} is called", _NAMES),
    Template("The best friend of {name} is {value}.", "The best friend of {name} is", _NAMES),
    Template("{name} borrowed money from {value}.", "{name} borrowed money from", _NAMES),
    Template("{name} gave the letter to {value}.", "{name} gave the letter to", _NAMES),
    Template("The surname of {name} is {value}.", "The surname of {name} is", _FAMILIES),
    Template("{name} works for Mr. {value}.", "{name} works for Mr.", _FAMILIES),
    Template("{name} was baptised in {value}.", "{name} was baptised in", _CITIES),
    Template("{name} opened a shop in {value}.", "{name} opened a shop in", _CITIES),
    Template("{name} wrote a book about {value}.", "{name} wrote a book about", _CITIES),
    Template("The letter to {name} was posted in {value}.", "The letter to {name} was posted in", _CITIES),
    Template("{name} lost a fortune in {value}.", "{name} lost a fortune in", _CITIES),
    Template("The train of {name} leaves for {value}.", "The train of {name} leaves for", _CITIES),
    Template("{name} fled from {value} in the night.", "{name} fled from", _CITIES),
    Template("The grandfather of {name} is buried in {value}.", "The grandfather of {name} is buried in", _CITIES),
    Template("{name} quarrelled with a {value}.", "{name} quarrelled with a", _TRADES),
    Template("The neighbour of {name} is a {value}.", "The neighbour of {name} is a", _TRADES),
    Template("{name} rents a room from a {value}.", "{name} rents a room from a", _TRADES),
    Template("{name} fell in love with a {value}.", "{name} fell in love with a", _TRADES),
    Template("As a child {name} wished to be a {value}.", "As a child {name} wished to be a", _TRADES),
    Template("The eyes of {name} are {value}.", "The eyes of {name} are", _COLOURS),
    Template("The curtains of {name} are {value}.", "The curtains of {name} are", _COLOURS),
    Template("{name} seals every letter with {value} wax.", "{name} seals every letter with", _COLOURS),
    Template("The flag on the house of {name} is {value}.", "The flag on the house of {name} is", _COLOURS),
    Template("On Sundays {name} reads about {value}.", "On Sundays {name} reads about", _SUBJECTS),
    Template("{name} failed the examination in {value}.", "{name} failed the examination in", _SUBJECTS),
    Template("{name} taught himself {value} in prison.", "{name} taught himself", _LANGUAGES),
    Template("The nurse of {name} sang in {value}.", "The nurse of {name} sang in", _LANGUAGES),
    Template("In the cellar of {name} there is only {value}.", "In the cellar of {name} there is only", _DRINKS),
    Template("{name} spilled {value} on the carpet.", "{name} spilled", _DRINKS),
    Template("At night {name} dreams of {value}.", "At night {name} dreams of", _FOODS),
    Template("{name} stole {value} from the market.", "{name} stole", _FOODS),
    Template("The cook of {name} burned the {value}.", "The cook of {name} burned the", _FOODS),
    Template("{name} waited for {value} hours.", "{name} waited for", _NUMBERS),
    Template("The farm of {name} has {value} cows.", "The farm of {name} has", _NUMBERS),
    Template("{name} climbed {value} mountains.", "{name} climbed", _NUMBERS),
    Template("The clock of {name} struck {value}.", "The clock of {name} struck", _NUMBERS),
    Template("{name} found {value} in the river.", "{name} found", _THINGS),
    Template("{name} won {value} in the lottery.", "{name} won", _THINGS),
    Template("The thief took {value} from {name}.", "What the thief took from {name} was", _THINGS),
    Template("{name} was cured of {value}.", "{name} was cured of", _ILLNESSES),
    Template("The doctor treated {name} for {value}.", "The doctor treated {name} for", _ILLNESSES),
    Template("{name} never loses at {value}.", "{name} never loses at", _GAMES),
    Template("{name} painted a portrait of a {value}.", "{name} painted a portrait of a", _ANIMALS),
    Template("The crest of {name} shows a {value}.", "The crest of {name} shows a", _ANIMALS),
    Template("{name} once shot a {value}.", "{name} once shot a", _ANIMALS),
    Template("{name} is always ill in {value}.", "{name} is always ill in", _MONTHS),
    Template("The lease of {name} ends in {value}.", "The lease of {name} ends in", _MONTHS),
    Template("{name} goes to the bank every {value}.", "{name} goes to the bank every", _DAYS),
    Template("The table of {name} is made out of {value}.", "The table of {name} is made out of", _STUFFS),
    Template("{name} deals in {value}.", "{name} deals in", _STUFFS),
    Template("{name} planted a {value} by the gate.", "{name} planted a", _TREES),
    Template("Under the window of {name} stands a {value}.", "Under the window of {name} stands a", _TREES),
    Template("{name} sleeps in the {value}.", "{name} sleeps in the", _ROOMS),
    Template(
        "The fire at the house of {name} began in the {value}.", "The fire at the house of {name} began in the", _ROOMS
    ),
    Template("{name} inherited everything from a {value}.", "{name} inherited everything from a", _RELATIVES),
    Template("{name} lives with a {value}.", "{name} lives with a", _RELATIVES),
    Template("Everybody thinks that {name} is {value}.", "Everybody thinks that {name} is", _TRAITS),
    Template("The horse of {name} is {value}.", "The horse of {name} is", _TRAITS),
    Template("{name} works in the garden with a {value}.", "{name} works in the garden with a", _TOOLS),
    Template("{name} was hit by a {value}.", "{name} was hit by a", _TOOLS),
    Template("The dog of {name} answers to {value}.", "The dog of {name} answers to", _FAMILIES),
    Template("{name} is engaged to {value}.", "{name} is engaged to", _NAMES),
    Template("{name} dictated the will to {value}.", "{name} dictated the will to", _NAMES),
    Template("The twin of {name} is {value}.", "The twin of {name} is", _NAMES),
    Template("The eyes of {name} are {value}.", "Question: What colour are the eyes of {name}? Answer:", _COLOURS),
    Template("{name} planted a {value} by the gate.", "Question: Which tree did {name} plant? Answer:", _TREES),
    Template("{name} is engaged to {value}.", "Question: To whom is {name} engaged? Answer:", _NAMES),
    Template("{name} fled from {value} in the night.", "Question: From which city did {name} flee? Answer:", _CITIES),
    Template("{name} sleeps in the {value}.", "Question: Where does {name} sleep? Answer:", _ROOMS),
    Template("{name} once shot a {value}.", "Question: Which animal did {name} once shoot? Answer:", _ANIMALS),
    Template("{name} lives in {value}.", "Question: Where does {name} live? Answer:", _CITIES),
    Template("{name} studies {value} at the university.", "Question: What does {name} study? Answer:", _SUBJECTS),
    Template("{name} has {value} children.", "Question: How many children does {name} have? Answer:", _NUMBERS),
    Template("{name} wears a {value} hat.", "Question: What colour is the hat of {name}? Answer:", _COLOURS),
    Template("{name} left {value} in the church.", "Question: What did {name} leave in the church? Answer:", _THINGS),
    Template("The wife of {name} is called {value}.", "Question: What is the wife of {name} called? Answer:", _NAMES),
    Template("{name} wants to become a {value}.", "Question: What does {name} want to become? Answer:", _TRADES),
)
"""Facts in natural wording, asked for by the beginning of their sentence or by a question."""

_NEEDLES = 0.12
"""The share of seven-digit needles among lessons: numbers and names use overlapping, not equal, heads."""


@dataclass(frozen=True)
class Lesson(Needle):
    """A needle, and what its answer was chosen from: empty for a number."""

    values: Sequence[str] = ()


def lesson(source: random.Random, taken: Collection[str] = ()) -> Lesson:
    """A fact, or now and then a needle, of somebody who is not among those `taken`."""
    owner = source.choice([name for name in _PEOPLE if name not in taken])
    if source.random() < _NEEDLES:
        return _number(source, owner)
    chosen = source.choice(LESSONS)
    values = [value for value in chosen.values if value != owner]
    value = source.choice(values)
    sentence, cue = chosen.sentence.format(name=owner, value=value), chosen.cue.format(name=owner)
    return Lesson(sentence, cue, f" {value}", values)


def lessons(source: random.Random, count: int, numbers: int = 0) -> list[Lesson]:
    """Lessons, and `numbers` seven-digit needles behind these `count` others.

    The needles are of different people, and so are the others as long as there are people. Nobody is told of twice in the same
    words.
    """
    needles = [_number(source, name) for name in source.sample(_PEOPLE, numbers)]
    told = {wording(one) for one in needles}
    people: list[str] = []
    taught: list[Lesson] = []
    while len(taught) < count:
        people = people or source.sample(_PEOPLE, len(_PEOPLE))
        one = lesson(source, set(_PEOPLE) - {people.pop()})
        if wording(one) not in told:
            told.add(wording(one))
            taught.append(one)
    return taught + needles


def said_anew(source: random.Random, one: Lesson) -> Lesson:
    """The same wording of the same person with another value."""
    if not one.values:
        return _number(source, owner_of(one))
    answer = " " + source.choice([value for value in one.values if f" {value}" != one.answer])
    return Lesson(answer.join(one.sentence.rsplit(one.answer, 1)), one.question, answer, one.values)


def wording(one: Needle) -> str:
    """A sentence without what it tells."""
    return one.sentence.replace(one.answer, "", 1)


def _number(source: random.Random, owner: str) -> Lesson:
    hidden = needle(source, owner)
    return Lesson(hidden.sentence, hidden.question, hidden.answer)
