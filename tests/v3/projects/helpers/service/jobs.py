def clean_up(older_than: int = 30):
    pass


async def sync_orders():
    pass
