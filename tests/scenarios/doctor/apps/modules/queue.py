HERE = "in the folder of the agent"
