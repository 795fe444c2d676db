while True:
    print("heard", input("You: "))
