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
    /// How often everybody comes back. Plots with many rounds are lists: short sentences, no distraction.
    pub(super) rounds: usize,
}

/// Introduces a person.
pub(super) const INTRODUCTIONS: &[&str] = &[
    "The {a.role} {a} lived there.",
    "Everybody knew the {a.role} {a}.",
    "The {a.role} {a} had a little house by the road.",
    "People liked the {a.role} {a}.",
    "The {a.role} {a} worked from morning to night.",
    "And there was the {a.role} {a}, who loved to sing.",
];

/// Introduces three people at once.
pub(super) const INTRODUCTIONS_OF_THREE: &[&str] = &[
    "Three friends lived there: the {a.role} {a}, the {b.role} {b} and the {c.role} {c}.",
    "The {a.role} {a}, the {b.role} {b} and the {c.role} {c} were neighbours.",
    "This is the story of the {a.role} {a}, the {b.role} {b} and the {c.role} {c}.",
];

/// Sentences about somebody of the cast that only need the introduction.
pub(super) const ASIDES: &[&str] = &[
    "The {a.role} [a] hummed an old song.",
    "\"What a day,\" said the {a.role} [a].",
    "The {a.role} [a] made soup for everybody.",
    "Even the {a.role} [a] had to laugh.",
    "The {a.role} [a] told a long story about the sea.",
    "Nobody worked as hard as {a} the [a.role].",
    "\"It will rain,\" said {a} the [a.role].",
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

impl Plot {
    /// Whether it is a list and not a tale.
    pub(super) fn is_list(&self) -> bool {
        self.rounds > 3
    }
}

/// All plots, lists last.
pub(super) const PLOTS: &[Plot] = &[
    Plot {
        openings: &[
            "Before the fair, everybody wanted to keep something safe.",
            "There was talk of thieves, so people began to hide their things.",
        ],
        facts: &[
            "{a} hid {an a.adj} {a.obj} {a.prep} the {a.place}.",
            "{a} took {an a.adj} {a.obj} and left it {a.prep} the {a.place}.",
            "{a} had {an a.adj} {a.obj} and buried it {a.prep} the {a.place}.",
        ],
        turns: &["Many weeks went by.", "Then the fair was over.", "At last the danger had passed."],
        recalls: &[
            "{a} went back to the [a.place] and found the [a.adj] [a.obj].",
            "The {a.adj} [a.obj] was still {a.prep} the [a.place].",
            "The {a.adj} [a.obj] belonged to [a], and nobody had touched it.",
            "{a.Prep} the [a.place] lay the {a.adj} [a.obj].",
            "The {a.role} [a] ran to the [a.place].",
            "\"My {a.adj} [a.obj] is safe,\" said [a].",
            "{a} washed the [a.adj] [a.obj] and took it home.",
        ],
        endings: &[
            "From then on the {a.role} [a] kept the {a.adj} [a.obj] at home.",
            "That evening {a} showed the [a.adj] [a.obj] to all the friends.",
        ],
        rounds: 2,
    },
    Plot {
        openings: &["It was the time of giving.", "There was a feast, and everybody brought a gift."],
        facts: &[
            "{a} gave {an a.adj} {a.obj} to {b}.",
            "{b} got {an a.adj} {a.obj} from {a}.",
            "{a} had made {an a.adj} {a.obj} and gave it to {b}.",
        ],
        turns: &["The feast went on for a long time.", "A year passed.", "Soon it was winter."],
        recalls: &[
            "{b} thanked [a] for the {a.adj} [a.obj].",
            "The {a.adj} [a.obj] was a gift from [a].",
            "{a} was glad that [b] liked the {a.adj} [a.obj].",
            "Now the {a.adj} [a.obj] belonged to [b].",
            "\"I gave it to [b],\" said {a}, and pointed at the [a.adj] [a.obj].",
            "{b} still had the {a.adj} [a.obj] from [a].",
            "The {a.role} [a] saw the {a.adj} [a.obj] in the hands of [b].",
        ],
        endings: &[
            "{b} never forgot that the {a.adj} [a.obj] came from [a].",
            "And {a} and [b] stayed friends, because of one {a.adj} [a.obj].",
        ],
        rounds: 2,
    },
    Plot {
        openings: &[
            "It was a day on which everything went wrong.",
            "People were in a hurry, and they lost things.",
        ],
        facts: &[
            "{a} dropped {an a.adj} {a.obj} {a.prep} the {a.place}.",
            "{a} lost {an a.adj} {a.obj} {a.prep} the {a.place}.",
            "{a} forgot {an a.adj} {a.obj} {a.prep} the {a.place}.",
        ],
        turns: &[
            "In the evening a child brought everything to the square.",
            "The next day they all went to look.",
            "An old woman found everything and asked whose it was.",
        ],
        recalls: &[
            "Whose was the {a.adj} [a.obj]? It was lost by [a].",
            "{a} looked {a.prep} the [a.place] again.",
            "The {a.adj} [a.obj] was found {a.prep} the [a.place].",
            "\"That {a.adj} [a.obj] is mine,\" said [a].",
            "{a} remembered the [a.place] and the [a.adj] [a.obj].",
            "The {a.role} [a] took back the [a.adj] [a.obj].",
            "They gave the {a.adj} [a.obj] to [a].",
        ],
        endings: &[
            "After that, {a} tied a string to the [a.adj] [a.obj].",
            "To this day the {a.role} [a] does not like the [a.place].",
        ],
        rounds: 2,
    },
    Plot {
        openings: &["They all wanted to see the world.", "Everybody had an errand that week."],
        facts: &[
            "{a} went to the {a.place} with {an a.adj} {a.obj}.",
            "{a} took {an a.adj} {a.obj} and walked to the {a.place}.",
            "{a} carried {an a.adj} {a.obj} to the {a.place}.",
        ],
        turns: &[
            "After some days they all came home.",
            "The road was long.",
            "In the end they met again in the square.",
        ],
        recalls: &[
            "{a} talked about the [a.place].",
            "The {a.adj} [a.obj] of [a] had come all the way from the [a.place].",
            "{a} still held the [a.adj] [a.obj].",
            "\"I saw the [a.place],\" said {a} the [a.role].",
            "The one who had been at the {a.place} was [a].",
            "On the way back from the {a.place}, [a] cleaned the [a.adj] [a.obj].",
            "The {a.role} [a] put down the [a.adj] [a.obj].",
        ],
        endings: &[
            "But {a} dreamed of the [a.place] every night.",
            "The next year {a} went to the [a.place] once more, with the same [a.adj] [a.obj].",
        ],
        rounds: 2,
    },
    Plot {
        openings: &["It was market day.", "Everybody had something to sell."],
        facts: &[
            "{a} sold {an a.adj} {a.obj} to {b} {a.prep} the {a.place}.",
            "{b} met {a} {a.prep} the {a.place} and bought {an a.adj} {a.obj}.",
        ],
        turns: &[
            "By noon the market was full.",
            "Then the sun went down, and the market closed.",
            "Days later they talked about it.",
        ],
        recalls: &[
            "{b} had bought the {a.adj} [a.obj] {a.prep} the [a.place].",
            "The {a.adj} [a.obj] now belonged to [b].",
            "The {a.adj} [a.obj] was sold by [a].",
            "{a} counted the money that [b] had paid for the {a.adj} [a.obj].",
            "{b} carried the {a.adj} [a.obj] home and thought of [a].",
            "The {a.role} [a] went {a.prep} the [a.place] again, but with nothing to sell.",
        ],
        endings: &[
            "{a} missed the [a.adj] [a.obj] a little.",
            "And the {a.adj} [a.obj] made [b] happy for many years.",
        ],
        rounds: 2,
    },
    Plot {
        openings: &["A great storm was coming.", "The mayor asked everybody to help."],
        facts: &[
            "{a} stood {a.prep} the {a.place} with {an a.adj} {a.obj}.",
            "{a} waited {a.prep} the {a.place} and held {an a.adj} {a.obj}.",
            "{a} brought {an a.adj} {a.obj} and kept watch {a.prep} the {a.place}.",
        ],
        turns: &[
            "All night the storm shook the houses.",
            "In the morning it was quiet.",
            "Nobody slept that night.",
        ],
        recalls: &[
            "{a} did not leave the [a.place].",
            "The {a.adj} [a.obj] of [a] was wet but whole.",
            "{a.Prep} the [a.place], [a] lifted the [a.adj] [a.obj].",
            "Without the {a.adj} [a.obj], [a] could not have done it.",
            "The {a.role} [a] came home from the [a.place].",
            "\"Who was at the {a.place}?\" asked the mayor. It was [a].",
            "{a} put the [a.adj] [a.obj] by the fire to dry.",
        ],
        endings: &[
            "The mayor thanked {a} the [a.role] for guarding the [a.place].",
            "Today the {a.adj} [a.obj] of [a] hangs in the town hall.",
        ],
        rounds: 2,
    },
    Plot {
        openings: &[
            "The teacher made a game of it.",
            "They played a game of names.",
            "They sat down and made a list.",
        ],
        facts: &[
            "{a} has {an a.adj} {a.obj}.",
            "{a} the {a.role} has {an a.adj} {a.obj}.",
            "{An a.adj} {a.obj} is with {a}.",
        ],
        turns: &["Then they said it again and again.", "And now all together.", "Now who has what?"],
        recalls: &[
            "The {a.adj} [a.obj] is with [a].",
            "{a} has the [a.adj] [a.obj].",
            "{a}: the [a.adj] [a.obj].",
            "The {a.role} [a]: the [a.adj] [a.obj].",
            "The {a.adj} [a.obj]: [a].",
            "{a} the [a.role]: the [a.adj] [a.obj].",
            "Who has the {a.adj} [a.obj]? [a].",
        ],
        endings: &[
            "In the end {a} the [a.role] had won, and went home with the [a.adj] [a.obj].",
            "After the game, the {a.role} [a] put away the [a.adj] [a.obj].",
        ],
        rounds: 6,
    },
    Plot {
        openings: &["Everybody was to stand at a certain place.", "They drew a map of the town."],
        facts: &[
            "{a} is {a.prep} the {a.place}.",
            "{a} the {a.role} is {a.prep} the {a.place}.",
            "{a.Prep} the {a.place} is {a}.",
        ],
        turns: &[
            "Then they went over it again.",
            "And once more, so that nobody forgets.",
            "Now who is where?",
        ],
        recalls: &[
            "{a.Prep} the [a.place] is [a].",
            "{a} is {a.prep} the [a.place].",
            "{a}: {a.prep} the [a.place].",
            "The {a.role} [a]: {a.prep} the [a.place].",
            "{a.Prep} the [a.place]: [a].",
            "{a} the [a.role]: {a.prep} the [a.place].",
            "Who is {a.prep} the [a.place]? [a].",
        ],
        endings: &[
            "At last {a} the [a.role] could leave the [a.place].",
            "Only the {a.role} [a] stayed {a.prep} the [a.place] until night.",
        ],
        rounds: 6,
    },
];

/// How many of the [`PLOTS`] are lists.
pub(super) const LISTS: usize = 2;
