"""Files: how they are written whole or not at all, and what is checked before one is believed.

Nothing here knows a model or a layer: arrays and their names go in and come out.
"""
