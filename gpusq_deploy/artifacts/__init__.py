"""The values that flow between rooms: frozen, validated once, each with one JSON form."""
