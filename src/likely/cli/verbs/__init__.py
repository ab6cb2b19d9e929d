"""The verbs, a file each, in folders by what they are for; `likely.cli.app` lists them."""
