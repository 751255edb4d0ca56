"""Errors of requests about webhooks, beyond the validation of single fields.

AppError (app/core/errors.py)
├── NotFound
│   ├── WebhookNotFound     404
│   └── DeliveryNotFound    404
└── InvalidFields
    ├── UrlRefused          400 on `url`
    ├── UnknownCalendars    400 on `calendar_ids`
    ├── TooManyWebhooks     400, `non_field_errors`
    ├── WebhookInactive     400, `non_field_errors`
    └── SecretLost          400, `non_field_errors`
"""

from app.core.errors import InvalidFields, NotFound


class WebhookNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Webhook not found")


class DeliveryNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Webhook delivery not found")


class UrlRefused(InvalidFields):
    def __init__(self, sentence: str) -> None:
        super().__init__({"url": [sentence]})


class UnknownCalendars(InvalidFields):
    def __init__(self, calendar_id: str) -> None:
        super().__init__({"calendar_ids": [f"There is no calendar {calendar_id!r} in this project."]})


class TooManyWebhooks(InvalidFields):
    def __init__(self, most: int) -> None:
        sentence = f"A project has at most {most} webhooks. Delete one that is no longer used."
        super().__init__({"non_field_errors": [sentence]})


class WebhookInactive(InvalidFields):
    def __init__(self) -> None:
        sentence = "The webhook is switched off, so nothing can be sent. PATCH it with is_active true first."
        super().__init__({"non_field_errors": [sentence]})


class SecretLost(InvalidFields):
    def __init__(self) -> None:
        sentence = "The stored secret can no longer be decrypted. POST rotate_secret to get a new one."
        super().__init__({"non_field_errors": [sentence]})
