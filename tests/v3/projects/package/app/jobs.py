from .scheduling import scheduler


@scheduler.scheduled_job("cron", day_of_week="mon-fri/2", hour="9-17", minute="*/30", id="prices")
async def fetch_prices():
    pass


@scheduler.scheduled_job("interval", hours=6)
def rotate_logs():
    pass


async def send_invoice(customer: int, *, copy: bool = False):
    pass
