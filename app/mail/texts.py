"""The texts of mails, by language."""

from typing import Literal, TypedDict


class Texts(TypedDict):
    """The texts of one language, by kind of mail; those about replies by participation status."""

    untitled: str
    colon: str
    subject: dict[str, str]
    subject_reply: dict[str, str]
    intro: dict[str, str]
    replied: dict[str, str]
    when: str
    where: str
    join: str
    organizer: str
    guests: str
    more_guests: str
    question: str
    replies: dict[str, str]
    automatic: str
    all_day: str
    weekdays: tuple[str, ...]
    months: tuple[str, ...]
    first_day: str
    repeats: str
    every: dict[str, tuple[str, str]]
    on_days: str
    last_and: str
    until: str
    times: str


TEXTS: dict[Literal["en", "fr"], Texts] = {
    "en": {
        "untitled": "(no title)",
        "colon": ":",
        "subject": {
            "invitation": "Invitation: {name}",
            "update": "Updated invitation: {name}",
            "cancelled": "Canceled: {name}",
            "uninvited": "Canceled for you: {name}",
        },
        "subject_reply": {
            "accepted": "Accepted: {name} ({who})",
            "tentative": "Tentatively accepted: {name} ({who})",
            "declined": "Declined: {name} ({who})",
            "needs_action": "Answer withdrawn: {name} ({who})",
        },
        "intro": {
            "invitation": "{organizer} invites you.",
            "update": "{organizer} has changed this event.",
            "cancelled": "{organizer} has canceled this event.",
            "uninvited": "You are no longer invited to this event of {organizer}.",
        },
        "replied": {
            "accepted": "{who} has accepted: yes, will be there.",
            "tentative": "{who} has answered: maybe.",
            "declined": "{who} has declined: no, will not be there.",
            "needs_action": "{who} has withdrawn the answer.",
        },
        "when": "When",
        "where": "Where",
        "join": "Join the meeting",
        "organizer": "Organizer",
        "guests": "Guests",
        "more_guests": "and {count} more",
        "question": "Will you be there?",
        "replies": {"accepted": "Yes", "tentative": "Maybe", "declined": "No"},
        "automatic": "This message was sent automatically. You can answer it from your calendar too.",
        "all_day": "all day",
        "weekdays": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
        "months": (
            "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
            "November", "December",
        ),
        "first_day": "1",
        "repeats": "Repeats",
        "every": {
            "DAILY": ("Every day", "Every {count} days"),
            "WEEKLY": ("Every week", "Every {count} weeks"),
            "MONTHLY": ("Every month", "Every {count} months"),
            "YEARLY": ("Every year", "Every {count} years"),
        },
        "on_days": "on",
        "last_and": "and",
        "until": "until",
        "times": "{count} times",
    },
    "fr": {
        "untitled": "(sans titre)",
        "colon": " :",
        "subject": {
            "invitation": "Invitation : {name}",
            "update": "Invitation modifiée : {name}",
            "cancelled": "Annulé : {name}",
            "uninvited": "Annulé pour vous : {name}",
        },
        "subject_reply": {
            "accepted": "Accepté : {name} ({who})",
            "tentative": "Accepté provisoirement : {name} ({who})",
            "declined": "Refusé : {name} ({who})",
            "needs_action": "Réponse retirée : {name} ({who})",
        },
        "intro": {
            "invitation": "{organizer} vous invite.",
            "update": "{organizer} a modifié cet événement.",
            "cancelled": "{organizer} a annulé cet événement.",
            "uninvited": "Vous n’êtes plus invité à cet événement de {organizer}.",
        },
        "replied": {
            "accepted": "{who} a accepté : oui, sera présent.",
            "tentative": "{who} a répondu : peut-être.",
            "declined": "{who} a refusé : non, ne sera pas présent.",
            "needs_action": "{who} a retiré sa réponse.",
        },
        "when": "Quand",
        "where": "Où",
        "join": "Rejoindre la réunion",
        "organizer": "Organisateur",
        "guests": "Invités",
        "more_guests": "et {count} de plus",
        "question": "Serez-vous présent ?",
        "replies": {"accepted": "Oui", "tentative": "Peut-être", "declined": "Non"},
        "automatic": "Ce message a été envoyé automatiquement. Vous pouvez aussi répondre depuis votre agenda.",
        "all_day": "toute la journée",
        "weekdays": ("lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche"),
        "months": (
            "janvier", "février", "mars", "avril", "mai", "juin", "juillet", "août", "septembre", "octobre",
            "novembre", "décembre",
        ),
        "first_day": "1er",
        "repeats": "Se répète",
        "every": {
            "DAILY": ("Tous les jours", "Tous les {count} jours"),
            "WEEKLY": ("Toutes les semaines", "Toutes les {count} semaines"),
            "MONTHLY": ("Tous les mois", "Tous les {count} mois"),
            "YEARLY": ("Tous les ans", "Tous les {count} ans"),
        },
        "on_days": "le",
        "last_and": "et",
        "until": "jusqu’au",
        "times": "{count} fois",
    },
}  # fmt: skip
