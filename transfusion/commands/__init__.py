"""The installed program `transfusion`, whose commands are the programs of the library.

`table` lists the commands; `program` runs them, as `transfusion train` or `python -m transfusion.commands train`;
`completion` writes what a shell completes. Two programs live here: `config` prints, compares and checks configs, and
`chat` is a conversation in a terminal.
"""
