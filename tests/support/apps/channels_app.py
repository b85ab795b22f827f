"""Django Channels beside the pages of django_app: a room in the channel layer of the process's memory."""

from __future__ import annotations

from typing import Any

from channels.generic.websocket import AsyncJsonWebsocketConsumer, WebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.urls import path

from tests.support.apps import django_app


class Room(AsyncJsonWebsocketConsumer):
    """Whatever one says, all in the room get, and how many rows the database has."""

    async def connect(self) -> None:
        self.room = self.scope["url_route"]["kwargs"]["room"]
        if self.room == "closed":
            await self.close()
            return
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(self.room, self.channel_name)
        await self.channel_layer.group_send(self.room, {"type": "room.say", "text": f"one has left with {code}"})

    async def receive_json(self, content: Any, **_: Any) -> None:
        if content == "bye":
            await self.close(4001)
            return
        databases = await django_app.database_model().objects.acount()
        await self.channel_layer.group_send(self.room, {"type": "room.say", "text": content, "databases": databases})

    async def room_say(self, event: dict[str, Any]) -> None:
        await self.send_json({name: value for name, value in event.items() if name != "type"})


class Echo(WebsocketConsumer):
    """Runs in threads."""

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        self.send(text_data=text_data, bytes_data=bytes_data)


def create() -> Any:
    django = django_app.create_asgi()
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    routes = [path("room/<str:room>", Room.as_asgi()), path("echo", Echo.as_asgi())]
    return ProtocolTypeRouter({"http": django, "websocket": URLRouter(routes)})
