"""Short questions whose answers a model must know: capitals, opposites, sums.  Facts written down by hand."""

from __future__ import annotations

import random
from dataclasses import dataclass

# country: capital; several accepted spellings are divided by |
CAPITALS = """
Afghanistan Kabul; Albania Tirana; Algeria Algiers; Angola Luanda; Argentina Buenos_Aires; Armenia Yerevan; Australia
Canberra; Austria Vienna; Azerbaijan Baku; Bahrain Manama; Bangladesh Dhaka|Dacca; Belarus Minsk; Belgium Brussels;
Bhutan Thimphu; Botswana Gaborone; Brazil Brasilia|Brasília; Bulgaria Sofia; Cambodia Phnom_Penh; Cameroon
Yaoundé|Yaounde; Canada Ottawa; Chad N'Djamena; Chile Santiago; China Beijing|Peking; Colombia Bogotá|Bogota; Croatia
Zagreb; Cuba Havana; Cyprus Nicosia; Denmark Copenhagen; Ecuador Quito; Egypt Cairo; Eritrea Asmara; Estonia Tallinn;
Ethiopia Addis_Ababa; Fiji Suva; Finland Helsinki; France Paris; Gabon Libreville; Georgia Tbilisi; Germany Berlin;
Ghana Accra; Greece Athens; Guatemala Guatemala_City; Guinea Conakry; Haiti Port-au-Prince; Honduras Tegucigalpa;
Hungary Budapest; Iceland Reykjavik|Reykjavík; India New_Delhi|Delhi; Indonesia Jakarta; Iran Tehran; Iraq Baghdad;
Ireland Dublin; Italy Rome; Jamaica Kingston; Japan Tokyo; Jordan Amman; Kenya Nairobi; Kuwait Kuwait_City; Kyrgyzstan
Bishkek; Laos Vientiane; Latvia Riga; Lebanon Beirut; Liberia Monrovia; Libya Tripoli; Lithuania Vilnius; Luxembourg
Luxembourg|Luxembourg_City; Madagascar Antananarivo; Malawi Lilongwe; Malaysia Kuala_Lumpur; Maldives Malé|Male; Mali
Bamako; Malta Valletta; Mauritania Nouakchott; Mauritius Port_Louis; Mexico Mexico_City; Moldova Chisinau|Chișinău;
Mongolia Ulaanbaatar|Ulan_Bator; Montenegro Podgorica; Morocco Rabat; Mozambique Maputo; Myanmar
Naypyidaw|Nay_Pyi_Taw; Namibia Windhoek; Nepal Kathmandu; Netherlands Amsterdam; New_Zealand Wellington; Nicaragua
Managua; Niger Niamey; Nigeria Abuja; North_Korea Pyongyang; Norway Oslo; Oman Muscat; Pakistan Islamabad; Panama
Panama_City; Paraguay Asunción|Asuncion; Peru Lima; Philippines Manila; Poland Warsaw; Portugal Lisbon; Qatar Doha;
Romania Bucharest; Russia Moscow; Rwanda Kigali; Saudi_Arabia Riyadh; Senegal Dakar; Serbia Belgrade; Sierra_Leone
Freetown; Slovakia Bratislava; Slovenia Ljubljana; Somalia Mogadishu; South_Korea Seoul; Spain Madrid; Sudan Khartoum;
Suriname Paramaribo; Sweden Stockholm; Switzerland Bern|Berne; Syria Damascus; Taiwan Taipei; Tajikistan Dushanbe;
Thailand Bangkok; Togo Lomé|Lome; Tunisia Tunis; Turkey Ankara; Turkmenistan Ashgabat; Uganda Kampala; Ukraine
Kyiv|Kiev; Uruguay Montevideo; Uzbekistan Tashkent; Venezuela Caracas; Vietnam Hanoi; Yemen Sanaa|Sana'a; Zambia
Lusaka; Zimbabwe Harare; Bahamas Nassau; Barbados Bridgetown; Belize Belmopan; Burkina_Faso Ouagadougou; Cape_Verde
Praia; Costa_Rica San_José|San_Jose; Djibouti Djibouti; Dominican_Republic Santo_Domingo; El_Salvador San_Salvador;
Gambia Banjul; Guyana Georgetown; Kazakhstan Astana; Lesotho Maseru; North_Macedonia Skopje; Papua_New_Guinea
Port_Moresby; South_Sudan Juba
"""

# word: accepted opposites
OPPOSITES = """
hot cold|cool; big small|little; tall short; fast slow; up down; left right; open closed|shut|close; light dark|heavy;
day night; wet dry; hard soft|easy; old new|young; rich poor; happy sad|unhappy; early late; full empty; high low;
long short; near far; strong weak; thick thin; wide narrow; deep shallow; loud quiet|soft|silent; clean dirty; good
bad|evil; right wrong|left; true false; begin end|finish; start stop|finish|end; win lose; buy sell; push pull; give
take|receive; love hate; laugh cry; remember forget; arrive depart|leave; accept reject|refuse|decline; increase
decrease; rise fall|sink; black white; north south; east west; inside outside; before after; above below; over under;
front back|rear; top bottom; first last; all none|nothing; always never; everything nothing; more less; many few; most
least; best worst; better worse; brave cowardly|afraid|timid|fearful; cheap expensive|costly; safe dangerous|unsafe;
simple complex|complicated|difficult; smooth rough; sharp blunt|dull; sweet sour|bitter; tight loose; ugly
beautiful|pretty; wild tame; wise foolish|unwise; young old; alive dead; asleep awake; absent present; ancient modern;
attack defend|defense|retreat; backward forward|forwards; bitter sweet; borrow lend; build destroy|demolish; calm
excited|agitated|stormy|nervous; clear cloudy|unclear|murky; common rare|uncommon; cruel kind; curved straight; dawn
dusk|sunset; defeat victory; difficult easy|simple; dull bright|sharp; easy hard|difficult; enemy friend|ally; enter
exit|leave; exit entrance|enter|entry; expand contract|shrink; fail succeed|pass; fancy plain; fat thin|slim|skinny;
female male; find lose; float sink; follow lead; foolish wise; freeze melt|thaw; fresh stale|rotten; future past;
generous selfish|stingy|greedy; gentle rough|harsh; guilty innocent; heaven hell; heavy light; hero villain|coward;
hide show|reveal|seek; honest dishonest; horizontal vertical; husband wife; import export; include exclude; innocent
guilty; internal external; join separate|leave; junior senior; kind cruel|mean|unkind; king queen; lazy
hardworking|industrious|active; legal illegal; lend borrow; live die; male female; major minor; maximum minimum;
mother father; moving still|stationary; noisy quiet|silent; odd even; offline online; optimist pessimist; parent
child; pass fail; peace war; permanent temporary; plural singular; polite rude|impolite; positive negative; possible
impossible; private public; proud ashamed|humble; question answer; raw cooked; reward punishment|punish; sane insane;
seldom often; shout whisper; sick healthy|well; sit stand; sober drunk; solid liquid; son daughter; spend save|earn;
straight crooked|curved|bent; summer winter; sunrise sunset; teacher student|pupil; tiny
huge|large|enormous|giant|big; together apart|separate|alone; uncle aunt; uniform varied|different; unite
divide|separate; upstairs downstairs; useful useless; vacant occupied|full; visible invisible; warm cool|cold; waste
save|conserve; winter summer; yes no; yesterday tomorrow
"""
EXAMPLES = {
    "capitals": [
        ("What is the capital of Vanuatu?", "Port Vila"),
        ("Of which country is Apia the capital?", "Samoa"),
        ("What is the capital of Liechtenstein?", "Vaduz"),
    ],
    "opposites": [
        ("What is the opposite of smart?", "stupid"),
        ("What is the opposite of create?", "destroy"),
        ("What is the opposite of outer?", "inner"),
    ],
    "sums": [("What is 3 + 4?", "7"), ("What is 21 + 8?", "29"), ("What is 40 + 33?", "73")],
}  # fmt: skip
TASKS = tuple(EXAMPLES)


@dataclass(frozen=True)
class Question:
    """answers: accepted ones."""

    question: str
    answers: tuple[str, ...]

    def prompt(self, task: str) -> str:
        """The question after three examples of the same kind."""
        shown = "".join(f"Question: {q}\nAnswer: {a}\n\n" for q, a in EXAMPLES[task])
        return f"{shown}Question: {self.question}\nAnswer:"


def _table(text: str) -> dict[str, tuple[str, ...]]:
    out = {}
    for entry in text.replace("\n", " ").split(";"):
        name, values = entry.split()
        assert name not in out, name
        out[name.replace("_", " ")] = tuple(v.replace("_", " ") for v in values.split("|"))
    return out


def questions(task: str, count: int | None, *, seed: int = 0) -> list[Question]:
    """`count` questions in an order drawn from the seed; None: all (of the sums: 300)."""
    if task == "capitals":
        table = _table(CAPITALS)
        found = [Question(f"What is the capital of {country}?", cities) for country, cities in table.items()]
        found += [Question(f"Of which country is {cities[0]} the capital?", (c,)) for c, cities in table.items()]
    elif task == "opposites":
        found = [Question(f"What is the opposite of {word}?", said) for word, said in _table(OPPOSITES).items()]
    elif task == "sums":
        rng = random.Random(1)
        pairs: dict[tuple[int, int], None] = {}
        while len(pairs) < 300:
            pairs[rng.randint(1, 99), rng.randint(1, 99)] = None
        found = [Question(f"What is {a} + {b}?", (str(a + b),)) for a, b in pairs]
    else:
        raise ValueError(f'unknown task "{task}" (allowed: {", ".join(TASKS)})')
    random.Random(seed).shuffle(found)
    return found[:count]
