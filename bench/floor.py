"""What any export by ranks costs at least: each imports torch and joins a group. Started by torchrun."""

import torch.distributed


def main() -> None:
    """Join a Gloo group, meet the other ranks once, leave."""
    torch.distributed.init_process_group("gloo")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
