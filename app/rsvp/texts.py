"""What the RSVP page says, in English and French."""

from typing import Any

from app.messages.rendering import Language

TEXTS: dict[Language, dict[str, Any]] = {
    "en": {
        "what": "Event",
        "when": "When",
        "where": "Where",
        "organizer": "Organizer",
        "you": "Invited",
        "current": "Your current answer",
        "answers": {
            "needs_action": "Not answered yet",
            "accepted": "Yes",
            "tentative": "Maybe",
            "declined": "No",
        },
        "buttons": {
            "accepted": "Yes, I will attend",
            "tentative": "Maybe",
            "declined": "No, I will not attend",
        },
        "titles": {
            "ask": "Your answer to this invitation",
            "done": "Thank you, your answer was recorded",
            "bad_link": "This link does not work",
            "expired": "This link has expired",
            "cancelled": "This event was cancelled",
            "over": "This event is over",
            "not_invited": "You are no longer invited",
            "too_many": "Too many requests",
        },
        "messages": {
            "bad_link": "It is incomplete or was changed on the way. Please use the link of the invitation as it is.",
            "expired": "The event ended some time ago, so it can no longer be answered.",
            "cancelled": "There is nothing to answer any more.",
            "over": "It can no longer be answered.",
            "not_invited": "The organizer has taken this address off the list of guests.",
            "too_many": "Please wait a minute and try again.",
        },
        "question": "You are about to answer: {answer}. One click sends it to the organizer.",
        "choose": "Will you attend? One click sends your answer to the organizer.",
        "other": "Answer something else",
        "change": "You can change your answer until the event is over.",
        "change_legend": "Change your answer",
        "choose_legend": "Your answer",
    },
    "fr": {
        "what": "Événement",
        "when": "Quand",
        "where": "Où",
        "organizer": "Organisateur",
        "you": "Invité",
        "current": "Votre réponse actuelle",
        "answers": {
            "needs_action": "Pas encore de réponse",
            "accepted": "Oui",
            "tentative": "Peut-être",
            "declined": "Non",
        },
        "buttons": {
            "accepted": "Oui, je participerai",
            "tentative": "Peut-être",
            "declined": "Non, je ne participerai pas",
        },
        "titles": {
            "ask": "Votre réponse à cette invitation",
            "done": "Merci, votre réponse est enregistrée",
            "bad_link": "Ce lien ne fonctionne pas",
            "expired": "Ce lien a expiré",
            "cancelled": "Cet événement est annulé",
            "over": "Cet événement est terminé",
            "not_invited": "Vous n’êtes plus invité",
            "too_many": "Trop de requêtes",
        },
        "messages": {
            "bad_link": "Il est incomplet ou a été modifié en chemin. Utilisez le lien de l’invitation tel quel.",
            "expired": "L’événement est terminé depuis quelque temps : il n’est plus possible d’y répondre.",
            "cancelled": "Il n’y a plus rien à répondre.",
            "over": "Il n’est plus possible d’y répondre.",
            "not_invited": "L’organisateur a retiré cette adresse de la liste des invités.",
            "too_many": "Patientez une minute, puis réessayez.",
        },
        "question": "Vous allez répondre : {answer}. Un clic envoie la réponse à l’organisateur.",
        "choose": "Participerez-vous ? Un clic envoie votre réponse à l’organisateur.",
        "other": "Répondre autre chose",
        "change": "Vous pouvez changer de réponse jusqu’à la fin de l’événement.",
        "change_legend": "Changer de réponse",
        "choose_legend": "Votre réponse",
    },
}
