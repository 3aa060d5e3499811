"""People whom a data set knows under two names: they belong on one side of a split, and are no strangers to each other."""

from __future__ import annotations

# These are names of which two pictures have a cosine above 0.65 to the recogniser reid0095; some of them are twins.
LFW_ALIASES = tuple(
    tuple(line.split(" = "))
    for line in (
        "Carlos_Beltran = Raul_Ibanez",
        "Bart_Hendricks = Ricky_Ray",
        "Emmy_Rossum = Eva_Amurri",
        "Gabrielle_Rose = Martha_Bowen",
        "Andrew_Caldecott = Andrew_Gilligan",
        "Shinya_Taniguchi = Takahiro_Mori",
        "Anja_Paerson = Janica_Kostelic",
        "Diana_Taurasi = Shavon_Earp",
        "Choi_Sung-hong = Sung_Hong_Choi",
        "Hasan_Wirayuda = Hassan_Wirajuda",
        "Noer_Moeis = Noer_Muis",
        "Chyung_Dai-chul = Dai_Chul_Chyung",
        "Carlos_Ruckauf = Eduardo_Duhalde",
        "Claire_Hentzen = Morgan_Hentzen",
        "Joseph_Blatter = Sepp_Blatter",
        "Michael_Schumacher = Rubens_Barrichello",
        "Wang_Yingfan = Yingfan_Wang",
        "Abdullah_Gul = Recep_Tayyip_Erdogan",
        "Tamara_Mowry = Tia_Mowry",
        "Carolina_Moraes = Isabela_Moraes",
        "Nan_Wang = Wang_Nan",
        "Jason_Kapono = Ray_Young",
        "Mireya_Elisa_Moscoso_Rodriguez = Mireya_Moscoso",
        "Harold_Scott = Jeff_Roehm",
        "Felipe_De_Borbon = Prince_Felipe",
        "Bison_Dele = Brian_Williams",
        "John_Barnett = John_Burnett",
        "Doc_Rivers = Glenn_Rivers",
        "Flor_Montulo = Nora_Bendijo",
        "Hamad_Bin_Isa_al-Khalifa = Mahmoud_Abbas",
        "Ashley_Olsen = Mary-Kate_Olsen",
        "Talisa_Bratt = Talisa_Soto",
        "John_Gruden = Jon_Gruden",
    )
)

_FIRST = {second: first for first, second in LFW_ALIASES}


def one_name(person: str) -> str:
    """The first of a person's two names, or the only one."""
    return _FIRST.get(person, person)
