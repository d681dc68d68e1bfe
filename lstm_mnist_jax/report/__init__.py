"""Reports on trained runs: metrics and predictions as arrays, figures, and an HTML page.

    from lstm_mnist_jax.inference import load_data, load_run
    from lstm_mnist_jax.report.diagnosis import diagnose
    from lstm_mnist_jax.report.figures import run_pictures

    run = load_run("runs/first")
    dataset = load_data(run.folder)
    diagnosis = diagnose(run, dataset)  # confusion matrix, accuracy by class, calibration, errors
    pictures = run_pictures(run, run.history(), diagnosis, dataset)

Each picture has a caption and a `figure` of matplotlib, which a notebook shows.
"""
