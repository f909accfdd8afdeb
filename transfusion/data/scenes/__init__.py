"""Scenes: pictures and clips of coloured shapes without end, with words that are known to fit, and a reader of pixels.

- `graph`: what a scene is, its splits, and the relations of things.
- `moving`: what a clip is, and how its frames are drawn.
- `render`: pictures of scenes.
- `parse`: pictures and clips back to what they show.
- `words`: captions, their paraphrases, their bits, and captions back to what they say.
- `questions`: questions and answers.
- `changes`: what edits ask for and stories tell.
- `maps`: edges, masks and layouts as pictures.
- `draws`: scenes and clips of a split by chance.
- `tasks`: the records of each task.
- `source`: the source of kind 'scenes'.
- `judge`: what of a caption a picture shows.
"""
