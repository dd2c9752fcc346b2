"""The default prompts of tasks 11 to 20 of the public BABILong harness, byte for byte; see `prompts.py`."""

from .prompt_parts import FACTS_ONLY, LATEST, ONE_LOCATION, OPEN_CONTEXT, PLAIN, SILENT, YES_OR_NO, examples

YES_OR_NO_ALONE = f"{YES_OR_NO} Do not write anything else. {PLAIN}"
ANIMALS = (
    "I will give you context with the facts about animals, their names and {what}. The facts and a question "
    "are hidden in some random text. " + FACTS_ONLY
)
FEAR_OF_WOLVES = (
    "Mice are afraid of wolves. Gertrude is a mouse. Cats are afraid of sheep. Winona is a mouse. "
    "Sheep are afraid of wolves. Emily is a mouse. Jessica is a wolf. "
)
PLACES = "I will give you context with the facts about different {what}, hidden in some random text and a question. "

PROMPTS = {
    "qa11": (
        LATEST,
        examples(
            ("Daniel journeyed to the hallway. After that he journeyed to the garden. Where is Daniel?", "garden"),
            (
                "Mary moved to the office. Afterwards she journeyed to the kitchen. Daniel went to the hallway. "
                "Then he journeyed to the garden. Where is Mary?",
                "kitchen",
            ),
            (
                "Sandra moved to the kitchen. After that she went back to the hallway. Sandra moved to the bedroom. "
                "Then she went to the hallway. Mary moved to the bedroom. Afterwards she travelled to the bathroom. "
                "Where is Sandra?",
                "hallway",
            ),
            end=OPEN_CONTEXT,
        ),
        f"{ONE_LOCATION} {PLAIN}",
    ),
    "qa12": (
        LATEST,
        examples(
            (
                "Mary and Daniel travelled to the bathroom. John and Daniel travelled to the office. Where is Daniel?",
                "office",
            ),
            (
                "Sandra and Mary went back to the office. Daniel and Sandra went to the bedroom. "
                "Sandra and Mary travelled to the hallway. John and Mary went to the kitchen. Where is Mary?",
                "kitchen",
            ),
            (
                "Daniel and Sandra went back to the hallway. Daniel and John moved to the office. "
                "Daniel and John moved to the garden. Daniel and Mary went back to the bathroom. "
                "Daniel and John went back to the kitchen. Daniel and Sandra went to the bathroom. Where is John?",
                "kitchen",
            ),
            end=OPEN_CONTEXT,
        ),
        f"{ONE_LOCATION} {PLAIN}",
    ),
    "qa13": (
        LATEST,
        examples(
            (
                "Mary and Daniel travelled to the bathroom. Then they journeyed to the hallway. Where is Daniel?",
                "hallway",
            ),
            (
                "Daniel and Sandra travelled to the kitchen. After that they journeyed to the hallway. "
                "Mary and Daniel travelled to the bedroom. After that they travelled to the hallway. Where is Sandra?",
                "hallway",
            ),
            (
                "John and Mary moved to the bathroom. Then they travelled to the office. "
                "John and Mary went to the kitchen. Afterwards they went to the bedroom. "
                "John and Sandra moved to the bathroom. Following that they went back to the kitchen. Where is Mary?",
                "bedroom",
            ),
            end=OPEN_CONTEXT,
        ),
        f"{ONE_LOCATION} {PLAIN}",
    ),
    "qa14": (
        LATEST,
        examples(
            (
                "Bill went back to the cinema yesterday. Julie went to the school this morning. "
                "Fred went to the park yesterday. Yesterday Julie went to the office. "
                "Where was Julie before the school?",
                "office",
            ),
            (
                "This morning Fred went to the kitchen. Fred journeyed to the bedroom yesterday. "
                "Mary travelled to the bedroom this morning. Yesterday Mary went to the cinema. "
                "Where was Mary before the bedroom?",
                "cinema",
            ),
            (
                "Yesterday Julie went back to the park. Julie went to the bedroom this morning. "
                "Bill journeyed to the cinema yesterday. This morning Bill went back to the park. "
                "This evening Julie went to the school. This afternoon Julie went back to the park. "
                "Where was Julie before the bedroom?",
                "park",
            ),
            end=OPEN_CONTEXT,
        ),
        f"{ONE_LOCATION} {PLAIN}",
    ),
    "qa15": (
        ANIMALS.format(what="relations"),
        examples(
            (f"{FEAR_OF_WOLVES}What is gertrude afraid of?", "wolf"),
            (f"{FEAR_OF_WOLVES}What is jessica afraid of?", "cat"),
            (
                "Mice are afraid of cats. Wolves are afraid of sheep. Emily is a wolf. Cats are afraid of sheep. "
                "Gertrude is a wolf. Sheep are afraid of cats. Winona is a wolf. What is emily afraid of?",
                "sheep",
            ),
            end=OPEN_CONTEXT,
        ),
        f"Your answer should contain only one word - an animal species. {SILENT} {PLAIN}",
    ),
    "qa16": (
        ANIMALS.format(what="colors"),
        examples(
            (
                "Lily is a frog. Bernhard is a frog. Bernhard is green. Brian is a lion. Brian is white. "
                "Julius is a swan. Julius is green. Lily is green. Greg is a swan. What color is Greg?",
                "green",
            ),
            (
                "Julius is a lion. Lily is a rhino. Bernhard is a swan. Lily is white. Bernhard is green. "
                "Greg is a rhino. Greg is gray. Julius is white. Brian is a lion. What color is Brian?",
                "white",
            ),
            (
                "Brian is a rhino. Julius is a lion. Bernhard is a lion. Greg is a swan. Brian is gray. "
                "Greg is white. Lily is a rhino. Bernhard is yellow. Lily is gray. What color is Julius?",
                "yellow",
            ),
            end=OPEN_CONTEXT,
        ),
        f"Your answer should contain only one word - a color. {SILENT} {PLAIN}",
    ),
    "qa17": (
        PLACES.format(what="figures, their location and colors") + FACTS_ONLY,
        examples(
            (
                "The triangle is above the pink rectangle. The blue square is to the left of the triangle. "
                "Is the pink rectangle to the right of the blue square?",
                "yes",
            ),
            (
                "The red sphere is to the left of the yellow square. The red sphere is below the pink rectangle. "
                "Is the pink rectangle to the left of the yellow square?",
                "yes",
            ),
        )
        + examples(
            (
                "The red sphere is above the pink rectangle. The red sphere is to the right of the red square. "
                "Is the pink rectangle above the red square?",
                "no",
            )
        ),
        YES_OR_NO_ALONE,
    ),
    "qa18": (
        PLACES.format(what="objects and their sizes") + FACTS_ONLY,
        examples(
            (
                "The box of chocolates fits inside the chest. The box is bigger than the chest. "
                "The box is bigger than the suitcase. The suitcase fits inside the box. "
                "The container is bigger than the box of chocolates. Does the box fit in the box of chocolates?",
                "no",
            ),
            (
                "The suitcase is bigger than the container. The container fits inside the box. "
                "The chest is bigger than the chocolate.The suitcase fits inside the box. "
                "The chest fits inside the box. Does the chocolate fit in the box?",
                "yes",
            ),
        )
        + examples(
            (
                "The chocolate fits inside the box of chocolates. The suitcase fits inside the box. "
                "The chocolate fits inside the box. The box is bigger than the box of chocolates. "
                "The suitcase is bigger than the box of chocolates. Is the chocolate bigger than the box?",
                "no",
            )
        ),
        YES_OR_NO_ALONE,
    ),
    "qa19": (
        PLACES.format(what="places and their locations") + FACTS_ONLY,
        examples(
            (
                "The office is east of the hallway. The kitchen is north of the office. "
                "The garden is west of the bedroom. The office is west of the garden. "
                "The bathroom is north of the garden. How do you go from the kitchen to the garden?",
                "s,e",
            ),
            (
                "The bedroom is west of the hallway. The office is east of the garden. "
                "The garden is north of the kitchen. The kitchen is north of the bathroom. "
                "The hallway is west of the garden. How do you go from the kitchen to the hallway?",
                "n,w",
            ),
            (
                "The bedroom is south of the hallway. The bathroom is east of the office. "
                "The kitchen is west of the garden. The garden is south of the office. "
                "The office is south of the bedroom. How do you go from the garden to the bedroom?",
                "n,n",
            ),
            end="\n",
        ),
        "Your answer should contain only two letters, separated by a comma - ordinal directions. You can choose the "
        f"letters from $n$, $s$, $e$ and $w$. {SILENT}",
    ),
    "qa20": (
        "I will give you context with the facts about people, their locations and condition hidden in some random text "
        f"and a question. {FACTS_ONLY} "
        "If a person was in different locations, use the latest location the person was in to answer the question.",
        examples(
            ("Sumit is tired. Where will sumit go?", "bedroom"),
            ("Yann is hungry. Yann journeyed to the kitchen. Why did yann go to the kitchen?", "hungry"),
            (
                "Antoine is thirsty. Yann is tired. Yann went back to the bedroom. Yann picked up the pajamas there."
                "Jason is thirsty. Antoine went back to the kitchen. Why did antoine go to the kitchen?",
                "thirsty",
            ),
            end=OPEN_CONTEXT,
        ),
        f"Your answer should contain only one word - a person condition or a place. {SILENT} {PLAIN}",
    ),
}
