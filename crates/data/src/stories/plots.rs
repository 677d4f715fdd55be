//! The plots. Each tells one relation per person in its `facts` and asks for it in its `recalls`, so that
//! any recall fits any fact of the same plot. See `template` for the notation.

/// One kind of story.
pub(super) struct Plot {
    /// Why it all happens.
    pub(super) openings: &'static [&'static str],
    /// States what belongs to person `a`; the same content in other words.
    pub(super) facts: &'static [&'static str],
    /// Time passes.
    pub(super) turns: &'static [&'static str],
    /// Sentences about `a` whose bracketed words follow from `a`'s fact.
    pub(super) recalls: &'static [&'static str],
    /// How it ends.
    pub(super) endings: &'static [&'static str],
    /// Whether the places are where the people live, which the facts then do not tell again.
    pub(super) homes: bool,
}

/// Introduces a person by a place that will matter to them.
pub(super) const INTRODUCTIONS: &[&str] = &[
    "The {a.role} {a} was born at {a.land} {a.place}.",
    "The {a.role} {a} loved {a.land} {a.place}.",
    "Everybody knew the {a.role} {a} of {a.land} {a.place}.",
    "The {a.role} {a} often sat at {a.land} {a.place}.",
];

/// Introduces a person who lives at `a`'s place.
pub(super) const INTRODUCTIONS_AT_HOME: &[&str] = &[
    "The {a.role} {a} lived at {a.land} {a.place}.",
    "The {a.role} {a} had a house at {a.land} {a.place}.",
    "Everybody knew the {a.role} {a} of {a.land} {a.place}.",
    "At {a.land} {a.place} lived the {a.role} {a}.",
];

/// Sentences about somebody of the cast that only need the introduction.
pub(super) const ASIDES: &[&str] = &[
    "The {a.role} [a] hummed an old song.",
    "\"What a day,\" said the {a.role} [a].",
    "The {a.role} [a] made soup for everybody.",
    "Even the {a.role} [a] had to laugh.",
    "The {a.role} [a] told a long story about the sea.",
    "Nobody worked as hard as the {a.role} [a].",
    "\"It will rain,\" said the {a.role} [a].",
    "The wind blew, and the {a.role} [a] went home early.",
];

/// Sentences about nobody.
pub(super) const WEATHER: &[&str] = &[
    "It rained for three days.",
    "The sun was warm and the sky was clear.",
    "A cold wind came down from the hills.",
    "Snow fell on the roofs.",
    "The river was high and loud.",
    "Clouds went over the fields.",
    "At night the stars were bright.",
    "The leaves turned yellow and fell.",
    "The days grew longer.",
    "There was music in the square until late.",
    "The children played in the street.",
    "Bread was cheap, and nobody was hungry.",
];

/// All plots.
pub(super) const PLOTS: &[Plot] = &[
    Plot {
        openings: &[
            "Before the fair, everybody wanted to keep something safe.",
            "There was talk of thieves, so people began to hide their things.",
        ],
        facts: &[
            "The {a.role} {a} hid {an a.adj} {a.obj} at {a.land} {a.place}.",
            "The {a.role} {a} took {an a.adj} {a.obj} and left it at {a.land} {a.place}.",
            "The {a.role} {a} had {an a.adj} {a.obj} and buried it at {a.land} {a.place}.",
        ],
        turns: &["Many weeks went by.", "Then the fair was over.", "At last the danger had passed."],
        recalls: &[
            "The {a.role} [a] went back to [a.land] [a.place].",
            "The {a.adj} [a.obj] was still at [a.land] [a.place].",
            "The {a.adj} [a.obj] belonged to the [a.role] [a].",
            "At {a.land} [a.place] lay the [a.adj] [a.obj].",
            "The {a.role} [a] found the [a.adj] [a.obj].",
            "\"My {a.adj} [a.obj] is safe,\" said the [a.role] [a].",
            "{a} took the [a.adj] [a.obj] home from [a.land] [a.place].",
        ],
        endings: &[
            "From then on the {a.role} [a] kept the [a.adj] [a.obj] at home.",
            "That evening the {a.role} [a] showed the [a.adj] [a.obj] to all the friends.",
        ],
        homes: false,
    },
    Plot {
        openings: &["It was the time of giving.", "There was a feast, and everybody brought a gift."],
        facts: &[
            "The {a.role} {a} gave {an a.adj} {a.obj} to the {b.role} {b}.",
            "The {b.role} {b} got {an a.adj} {a.obj} from the {a.role} {a}.",
            "The {a.role} {a} had made {an a.adj} {a.obj} and gave it to the {b.role} {b}.",
        ],
        turns: &["The feast went on for a long time.", "A year passed.", "Soon it was winter."],
        recalls: &[
            "The {b.role} [b] thanked the [a.role] [a] for the {a.adj} [a.obj].",
            "The {a.adj} [a.obj] was a gift from the [a.role] [a].",
            "Now the {a.adj} [a.obj] belonged to the [b.role] [b].",
            "The {b.role} [b] still had the {a.adj} [a.obj] from the [a.role] [a].",
            "The {b.role} [b] took the {a.adj} [a.obj] home to [b.land] [b.place].",
            "The {a.role} [a] had given away the [a.adj] [a.obj].",
            "\"I live at {a.land} [a.place],\" said the [a.role] [a].",
        ],
        endings: &[
            "The {b.role} [b] never forgot that the {a.adj} [a.obj] came from the [a.role] [a].",
            "And the {a.role} [a] was happy about the {a.adj} [a.obj] for many years.",
        ],
        homes: true,
    },
    Plot {
        openings: &[
            "It was a day on which everything went wrong.",
            "People were in a hurry, and they lost things.",
        ],
        facts: &[
            "The {a.role} {a} lost {an a.adj} {a.obj} at {a.land} {a.place}.",
            "The {a.role} {a} dropped {an a.adj} {a.obj} at {a.land} {a.place}.",
            "At {a.land} {a.place}, the {a.role} {a} lost {an a.adj} {a.obj}.",
        ],
        turns: &[
            "In the evening a child brought everything to the square.",
            "The next day they all went to look.",
            "An old woman found everything and asked whose it was.",
        ],
        recalls: &[
            "Whose was the {a.adj} [a.obj]? It was lost by the [a.role] [a].",
            "The {a.role} [a] went to look at [a.land] [a.place] again.",
            "The {a.adj} [a.obj] was found at [a.land] [a.place].",
            "\"That {a.adj} [a.obj] is mine,\" said the [a.role] [a].",
            "They gave the {a.adj} [a.obj] to the [a.role] [a].",
            "The {a.role} [a] took back the [a.adj] [a.obj].",
            "At {a.land} [a.place] the [a.role] [a] had lost the [a.adj] [a.obj].",
        ],
        endings: &[
            "To this day the {a.role} [a] does not like [a.land] [a.place].",
            "After that, the {a.role} [a] tied a string to the [a.adj] [a.obj].",
        ],
        homes: false,
    },
    Plot {
        openings: &["They all wanted to see the world.", "Everybody had an errand that week."],
        facts: &[
            "The {a.role} {a} went to {a.land} {a.place} with {an a.adj} {a.obj}.",
            "The {a.role} {a} took {an a.adj} {a.obj} and walked to {a.land} {a.place}.",
            "The {a.role} {a} carried {an a.adj} {a.obj} to {a.land} {a.place}.",
        ],
        turns: &[
            "After some days they all came home.",
            "The road was long.",
            "In the end they met again in the square.",
        ],
        recalls: &[
            "The {a.role} [a] talked about [a.land] [a.place].",
            "The {a.adj} [a.obj] had been at [a.land] [a.place].",
            "The {a.role} [a] still held the [a.adj] [a.obj].",
            "\"I saw {a.land} [a.place],\" said the [a.role] [a].",
            "The one who had been at {a.land} [a.place] was the [a.role] [a].",
            "At {a.land} [a.place] it had rained on the [a.adj] [a.obj].",
            "The {a.role} [a] put down the [a.adj] [a.obj].",
        ],
        endings: &[
            "But the {a.role} [a] dreamed of [a.land] [a.place] every night.",
            "The next year the {a.role} [a] went to [a.land] [a.place] once more, with the same [a.adj] [a.obj].",
        ],
        homes: false,
    },
    Plot {
        openings: &["It was market day.", "Everybody had something to sell."],
        facts: &[
            "The {a.role} {a} sold {an a.adj} {a.obj} to the {b.role} {b}.",
            "The {b.role} {b} met the {a.role} {a} and bought {an a.adj} {a.obj}.",
        ],
        turns: &[
            "By noon the market was full.",
            "Then the sun went down, and the market closed.",
            "Days later they talked about it.",
        ],
        recalls: &[
            "The {b.role} [b] had bought the {a.adj} [a.obj] from the [a.role] [a].",
            "The {a.adj} [a.obj] now belonged to the [b.role] [b].",
            "The {a.adj} [a.obj] was sold by the [a.role] [a].",
            "The {b.role} [b] carried the {a.adj} [a.obj] home to [b.land] [b.place].",
            "The {a.role} [a] walked back to [a.land] [a.place].",
            "The {a.role} [a] counted the money for the [a.adj] [a.obj].",
        ],
        endings: &[
            "The {a.role} [a] missed the [a.adj] [a.obj] a little.",
            "And the {a.adj} [a.obj] made the [b.role] [b] happy for many years.",
        ],
        homes: true,
    },
    Plot {
        openings: &["A great storm was coming.", "The mayor asked everybody to help."],
        facts: &[
            "The {a.role} {a} stood at {a.land} {a.place} with {an a.adj} {a.obj}.",
            "The {a.role} {a} waited at {a.land} {a.place} and held {an a.adj} {a.obj}.",
            "The {a.role} {a} brought {an a.adj} {a.obj} and kept watch at {a.land} {a.place}.",
        ],
        turns: &[
            "All night the storm shook the houses.",
            "In the morning it was quiet.",
            "Nobody slept that night.",
        ],
        recalls: &[
            "The {a.role} [a] did not leave [a.land] [a.place].",
            "The {a.adj} [a.obj] of the [a.role] [a] was wet but whole.",
            "At {a.land} [a.place], the [a.role] [a] lifted the [a.adj] [a.obj].",
            "The {a.role} [a] came home from [a.land] [a.place].",
            "\"Who was at {a.land} [a.place]?\" asked the mayor. It was the [a.role] [a].",
            "Without the {a.adj} [a.obj], the [a.role] [a] could not have done it.",
            "The {a.role} [a] put the [a.adj] [a.obj] by the fire to dry.",
        ],
        endings: &[
            "The mayor thanked the {a.role} [a] for guarding [a.land] [a.place].",
            "Today the {a.adj} [a.obj] of the [a.role] [a] hangs in the town hall.",
        ],
        homes: false,
    },
];
