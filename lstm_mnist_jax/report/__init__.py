"""What a trained run shows of itself: its history and its diagnosis as arrays, pictures of both, and a page.

    from lstm_mnist_jax.inference import load_data, load_run
    from lstm_mnist_jax.report.contents import run_pictures
    from lstm_mnist_jax.report.diagnosis import diagnose

    run = load_run("runs/first")
    dataset = load_data(run.folder)
    diagnosis = diagnose(run, dataset)  # confusion, accuracy by class, calibration, mistakes
    pictures = run_pictures(run, run.history(), diagnosis, dataset)

Each picture has a caption, and a `figure` of matplotlib, which a notebook shows as it is.
"""
