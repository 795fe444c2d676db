"""A form with one field."""

import gradio as gr

with gr.Blocks() as page:
    name = gr.Textbox(label="Name")
    greeting = gr.Textbox(label="Greeting")
    name.submit(lambda who: "Good day, " + who, name, greeting)

page.launch()
